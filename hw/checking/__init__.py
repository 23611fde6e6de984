"""A student's answers to the problem set, judged: sheets and variants, what is asked, marks, the form."""
