"""Judges a student's answers to the problem set: sheets and their variants, questions, marks, the form."""
