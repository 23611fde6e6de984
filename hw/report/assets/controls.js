/* Builds a widget's controls, and updates its working when a reader changes them.
 *
 * A widget fills every hidden `div` of class "play" with data-play="NAME", and shows it. data-level="N" is
 * the level of its first headings (default: 4).
 */
(() => {
  "use strict";

  const { data, say, html, newId } = hw;

  const PAUSE = 350; // ms from the last key until the text is read

  /** Runs `read`; a mistake in it belongs to that field. */
  function at(field, read) {
    try {
      return read();
    } catch (error) {
      if (error instanceof hw.UserError) error.field ??= field;
      throw error;
    }
  }

  /** Controls for `fields`, and the working that `work(values, level)` makes of their values.
   *
   * A field is {name, label, kind, start, hint, broad}: kind "text"; "choice" with options {value: label};
   * "check"; "slider" with least, most, step. `changed(name, values, set)` may set other fields when one has
   * changed. `work` returns {summary, nodes}, and also an error if the working stops part of the way. */
  function build(root, { legend, fields, work, changed = () => {} }) {
    const level = Number(root.dataset.level) || 4;
    const controls = {};
    const trouble = newId("error");
    const values = () =>
      Object.fromEntries(
        fields.map(({ name, kind }) => {
          const { input } = controls[name];
          if (kind === "check") return [name, input.checked];
          return [name, kind === "slider" ? Number(input.value) : input.value];
        }),
      );

    function set(name, value) {
      const { input, field, shown } = controls[name];
      if (field.kind === "check") input.checked = value;
      else input.value = String(value);
      if (shown) shown.textContent = hw.text(Number(input.value));
    }

    function control(field) {
      const id = newId(field.name);
      const hintId = field.hint && newId("hint");
      const errorId = newId("error");
      const common = { id, "aria-describedby": [hintId, errorId].filter(Boolean).join(" ") };
      const label = html("label", { for: id }, field.label);
      const error = html("span", { id: errorId, class: "play-error", role: "alert" });
      const hint = field.hint ? html("span", { id: hintId, class: "play-hint" }, field.hint) : [];
      let input;
      let shown = null;
      if (field.kind === "choice") {
        const options = Object.entries(field.options).map(([value, text]) =>
          html("option", { value }, text),
        );
        input = html("select", common, options);
      } else if (field.kind === "check") {
        input = html("input", { type: "checkbox", ...common });
      } else if (field.kind === "slider") {
        const { least: min, most: max, step: by } = field;
        input = html("input", { type: "range", min, max, step: by, ...common });
        // A screen reader reads this value with the slider, so it needs no separate announcement.
        shown = html("output", { for: id, "aria-live": "off" });
      } else {
        input = html("input", {
          type: "text",
          autocomplete: "off",
          autocapitalize: "off",
          spellcheck: "false",
          ...common,
        });
      }
      controls[field.name] = { input, field, error, shown };
      const parts = field.kind === "check" ? [input, label] : [label, input, shown ?? []];
      return html(
        "div",
        { class: `play-field play-${field.kind}${field.broad ? " play-broad" : ""}` },
        parts,
        hint,
        error,
      );
    }

    const general = html("p", { id: trouble, class: "play-error", role: "alert" });
    const summary = html("output", { class: "play-result", "aria-live": "polite" });
    const reset = html("button", { type: "button", class: "play-reset" }, say("reset"));
    const working = html("div", { class: "play-working" });
    const fieldset = html("fieldset", {}, html("legend", {}, legend), fields.map(control), general, reset);

    function complain(error) {
      for (const { input, error: line } of Object.values(controls)) {
        input.removeAttribute("aria-invalid");
        if (line.textContent) line.textContent = "";
      }
      if (general.textContent) general.textContent = "";
      if (!error) return;
      const { input, error: line } = controls[error.field] ?? { error: general };
      input?.setAttribute("aria-invalid", "true");
      line.textContent = say("error", { message: error.message });
    }

    /** Replaces the working; unfolded parts stay unfolded, and scrolled parts keep their position. */
    function replaceWorking(nodes) {
      const all = (selector) => [...working.querySelectorAll(selector)];
      const opened = all("details").map((node) => node.open);
      const scrolled = all(".play-scroll").map((node) => node.scrollLeft);
      working.replaceChildren(...nodes);
      all("details").forEach((node, i) => (node.open = opened[i] ?? false));
      all(".play-scroll").forEach((node, i) => (node.scrollLeft = scrolled[i] ?? 0));
    }

    let before = null;
    function update() {
      const now = JSON.stringify(values());
      if (now === before) return;
      before = now;
      let made;
      try {
        made = work(values(), level);
      } catch (error) {
        if (!(error instanceof hw.UserError)) throw error;
        complain(error); // the last good working stays
        return;
      }
      complain(made.error);
      summary.textContent = made.summary;
      replaceWorking(made.nodes);
    }

    function start() {
      fields.forEach((field) => set(field.name, field.start));
      update();
    }

    let waiting = null;
    fieldset.addEventListener("input", (event) => {
      const [name, { field }] = Object.entries(controls).find(([, c]) => c.input === event.target);
      clearTimeout(waiting);
      if (field.kind === "text") {
        waiting = setTimeout(update, PAUSE);
        return;
      }
      set(name, values()[name]);
      changed(name, values(), set);
      update();
    });
    fieldset.addEventListener("change", () => {
      clearTimeout(waiting);
      update();
    });
    reset.addEventListener("click", () => {
      clearTimeout(waiting);
      start();
    });
    root.replaceChildren(fieldset, summary, working);
    start();
    root.hidden = false;
  }

  const slider = (name, label, { start, least, most, step: by }) => ({
    name,
    label,
    kind: "slider",
    start,
    least,
    most,
    step: by,
  });

  /** Builds the widget of this name at every place of the page; `make` turns its start values into the
   * argument of `build`. */
  function widget(name, make) {
    for (const place of document.querySelectorAll(`.play[data-play="${name}"]`))
      build(place, make(data[name]));
  }

  Object.assign(hw, { at, slider, widget });
})();
