/* Unrolls the RNN for as many steps as a reader chooses, for question 3.
 *
 * The widget starts from {steps: SLIDER}, where SLIDER is {start, least, most, step}.
 */
(() => {
  "use strict";

  const { say, newId, html, svg, row, sub, scroller, table, step, folded, drawing, slider } = hw;

  // A reader can tell the weights apart by label, dashes and arrow head, and not by colour alone.

  const WEIGHTS = {
    W_xh: {
      colour: "var(--accent)",
      dash: null,
      head: "M0,0 L8,4 L0,8 z",
      name: say("solid_line"),
    },
    W_hh: {
      colour: "var(--accent-2)",
      dash: "7 4",
      head: "M0,4 L4,0 L8,4 L4,8 z",
      name: say("dashed_line"),
    },
    W_hy: { colour: "var(--ink)", dash: "2 4", head: "M0,0 L8,4 L0,8", name: say("dotted_line") },
  };

  const lastState = (steps) => `h${hw.subscript(steps)}`;
  const timeSteps = (steps) => (steps === 1 ? say("one_step") : say("many_steps", { steps }));

  function graphFigure(steps) {
    const graph = hw.unrolledGraph(steps);
    const [apart, left, height] = [104, 46, 292];
    const rows = { y: 44, h: 142, x: 240 };
    const width = left + steps * apart + 60;
    const place = (node) => [left + node.time * apart, rows[node.kind]];
    const nodes = Object.fromEntries(graph.nodes.map((node) => [node.id, node]));
    const heads = {};
    const definitions = Object.entries(WEIGHTS).map(([weight, style]) => {
      heads[weight] = newId("head");
      const open = weight === "W_hy";
      return svg(
        "marker",
        {
          id: heads[weight],
          viewBox: "-1 -1 10 10",
          refX: 8,
          refY: 4,
          markerWidth: 10,
          markerHeight: 10,
          orient: "auto",
          markerUnits: "userSpaceOnUse",
        },
        svg("path", { d: style.head, fill: open ? "none" : style.colour, stroke: style.colour }),
      );
    });
    const radius = 20;
    const edges = graph.edges.map(({ from, to, weight }) => {
      const [[x1, y1], [x2, y2]] = [place(nodes[from]), place(nodes[to])];
      const [dx, dy] = [Math.sign(x2 - x1), Math.sign(y2 - y1)];
      const style = WEIGHTS[weight];
      const across = dy === 0;
      return [
        svg("line", {
          x1: x1 + dx * radius,
          y1: y1 + dy * radius,
          x2: x2 - dx * (radius + 1),
          y2: y2 - dy * (radius + 1),
          stroke: style.colour,
          "stroke-width": 2,
          "stroke-dasharray": style.dash,
          "marker-end": `url(#${heads[weight]})`,
        }),
        labelled(
          (x1 + x2) / 2 + (across ? 0 : 8),
          (y1 + y2) / 2 + (across ? -9 : 4),
          "W",
          weight.slice(2),
          across ? "middle" : "start",
        ),
      ];
    });
    const circles = graph.nodes.map((node) => {
      const [x, y] = place(node);
      return [
        node.kind === "h"
          ? svg("circle", { class: "play-node", cx: x, cy: y, r: radius })
          : svg("rect", { class: "play-node", x: x - 20, y: y - 20, width: 40, height: 40, rx: 4 }),
        labelled(x, y + 5, node.kind, node.time, "middle"),
        node.time === 0 ? svg("text", { x, y: y + 38, "text-anchor": "middle" }, "= 0") : [],
      ];
    });
    const title = say("unrolled_title", { time_steps: timeSteps(steps) });
    const description = say("graph_text", { last: `x${hw.subscript(steps)}` });
    const content = [svg("defs", {}, definitions), edges, circles];
    const attributes = { class: "play-graph", width, height };
    return html(
      "figure",
      { class: "play-figure" },
      drawing(width, height, title, description, content, attributes),
    );
  }

  function labelled(x, y, letter, index, anchor) {
    return svg(
      "text",
      { x, y, "text-anchor": anchor },
      letter,
      svg("tspan", { dy: 4, "font-size": "0.75em" }, String(index)),
    );
  }

  function unrolledWork({ steps }, level) {
    const bias = () => ["+", sub("b", "h")];
    const whh = () => sub("W", "hh");
    const wxh = (t) => [sub("W", "xh"), sub("x", t)];
    const lines = Array.from({ length: steps }, (_, i) => i + 1).flatMap((t) => [
      row(sub("h", t), "=", "tanh", "(", wxh(t), "+", whh(), t === 1 ? "0" : sub("h", t - 1), bias(), ")"),
      row(sub("y", t), "=", sub("W", "hy"), sub("h", t), "+", sub("b", "y")),
    ]);
    let inner = [];
    for (let t = 1; t <= steps; t++) {
      inner = ["tanh", "(", wxh(t), t > 1 ? ["+", whh(), inner] : [], bias(), ")"];
    }
    const graph = hw.unrolledGraph(steps);
    const legend = Object.values(WEIGHTS).map(({ name }) => html("li", {}, name));
    const edgeTable = table(
      say("edges_title"),
      say("edges_header"),
      graph.edges.map((edge) => [edge.from, edge.to, edge.weight]),
    );
    const nodes = [
      step(
        level,
        say("unrolled_title", { time_steps: timeSteps(steps) }),
        say("unrolled_text"),
        [],
        graphFigure(steps),
      ),
      html("ul", { class: "play-legend" }, legend),
      folded(say("graph_as_table"), scroller(say("edges_title"), edgeTable)),
      step(level, say("step_by_step_title"), "", lines),
      step(level, say("nested_title", { last: lastState(steps) }), say("nested_text"), [
        row(sub("h", steps), "=", inner),
      ]),
    ];
    const depth = steps <= 4 ? hw.nested(steps) : say("depth", { steps, last: lastState(steps) });
    const edges = graph.edges.length;
    const summary = say("unrolled_summary", { time_steps: timeSteps(steps), edges, depth });
    return { summary, nodes };
  }

  hw.widget("unrolled", (start) => ({
    legend: say("unrolled_legend"),
    fields: [slider("steps", say("steps_label"), start.steps)],
    work: unrolledWork,
  }));
})();
