/* Reads the page's data for the scripts after this one: start values, random draws, and all sentences.
 *
 * hw.report.play writes the data into <script type="application/json" id="play-data">:
 *
 *   sentences    name: a sentence with {placeholders}, or a list of them (hw.report.sentences)
 *   per          draws are stored as whole numbers: a draw is number / per
 *   WIDGET       the start values of the widget of this name: see the top of its script
 *
 * The scripts share one global, `hw`. Each script adds the functions that later scripts use.
 */
globalThis.hw = (() => {
  "use strict";

  const data = JSON.parse(document.getElementById("play-data").textContent);

  /** The sentence of this name, or its list, with every placeholder filled in. */
  function say(name, values = {}) {
    const fill = (sentence) =>
      sentence.replace(/\{(\w+)\}/g, (placeholder, key) => {
        if (values[key] === undefined) throw new Error(name + placeholder);
        return values[key];
      });
    const found = data.sentences[name];
    return Array.isArray(found) ? found.map(fill) : fill(found);
  }

  const drawn = (matrix) => matrix.map((r) => r.map((x) => x / data.per));

  /** A mistake that the reader can correct, as one line. */
  class UserError extends Error {
    constructor(sentence, values) {
      super(say(sentence, values));
    }
  }

  return { data, say, drawn, UserError };
})();
