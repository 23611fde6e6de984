"""Holds all sentences that the page's widgets show, by name: titles, explanations, hints, mistakes, labels.

The scripts in `assets/` ask for a sentence by its name and fill in its placeholders, which are written as for
`str.format`. A step that also stands in a worked answer takes its sentences from that answer. A list holds
the header of a table, or the names of several things in a fixed order.
"""

from collections.abc import Mapping

from hw.answers import attention, attention_gradient, cnn, unrolled_rnn

Sentence = str | list[str]

_EVERY_WIDGET = {
    "working": "Working: {title}",
    "left_out": "{count} more lines like these are left out; the table has every number.",
    "reset": "Reset to the sheet",
    "error": "Error: {message}",
}

# hw.answers refuses the same matrices in the same words; tests/report/test_play.py compares them.
_MISTAKES_IN_MATRICES = {
    "entry": "{name}, row {row}, entry {entry}",
    "no_number": "{where}: '{word}' is not a number (3, -0.5, 2e-3, 1/3)",
    "beyond_float64": "{where}: '{word}' is too large or too small for a float64",
    "divides_by_zero": "{where}: '{word}' divides by zero",
    "mixed_separators": "{name}: '{row}' mixes commas and blanks: use only one; decimals have a point",
    "empty_row": "{name}: row {row} is empty (rows end with ';', as in \"1 2; 3 4\")",
    "ragged_rows": "{name}: row {row} has {entries} entries, row 1 has {first}",
    "too_many_entries": "{name}: {count} entries are more than {most}",
    "number_too_large": "{name}: a number is too large for a float64",
    "d_k_differs": "Q has {q} columns, K has {k}: both must be d_k",
    "n_k_differs": "K has {k} rows, V has {v}: one value belongs to each key",
    "query_sees_nothing": "causal mask: query 1 of {queries} sees none of {keys} keys (aligned at the end)",
    "too_many_scores": "{rows} × {columns} {what} are more than {most}; give smaller matrices",
    "dout_differs": "dout is {rows} × {columns}, the output is {n_q} × {d_v}: they must have the same shape",
    "results_too_large": "{what} are too large for a float64",
    "scores": "scores",
    "outputs": "outputs",
    "gradients": "gradients",
}

# hw.ops refuses the same layers in the same words; tests/report/test_play.py compares them.
_MISTAKES_IN_LAYERS = {
    "window_does_not_fit": "a window spanning {span} pixels does not fit in {lo} + {n} + {hi} (padding + "
    "input + padding)",
    "less_than_1": "{name} must be at least 1, not {number}",
    "groups_do_not_divide": "{groups} groups do not divide {channels} {side} channels",
    "input": "input",
    "output": "output",
    "window_over_vector": "a window slides over an image, not a vector; put it before flatten",
    "padding_too_large": "padding {padding} is more than half of the window {window}",
    "dense_on_image": "dense takes a vector; put flatten before it",
    "too_many_digits": "{word} is too large; a number has at most {most} digits",
    "not_one_number": "{field} is one number, not {word}",
    "unknown_layer": "cannot read {word}; layers are {kinds}",
    "number_is_missing": '"{kind}" needs a number right after it, as in "{kind}2"',
    "no_options": "cannot read {word}; {kind} has no options",
    "unknown_option": "cannot read {word}; options are {options}",
    "given_twice": "{field} is given twice, as {first} and {second}",
    "kernel_is_missing": 'a convolution needs the size of its kernel, as in "{word}k3"',
    "layer_is_wrong": "layer {number} {word}: {message}",
    "layer_does_not_fit": "layer {number} {word} on {shape}: {message}",
    "no_layers": 'no layers; write them as in "conv16k5same pool2 flatten dense100"',
    "not_an_input": "input {word} is not height x width x channels, as in 128x128x3",
    "too_many_layers": "{count} layers are more than the {most} shown here",
}

_ATTENTION = {
    "attention_legend": "Your own attention",
    "q_label": "Q, one row for each query",
    "q_hint": 'Rows end with ";".',
    "k_label": "K, one row for each key",
    "k_hint": "Numbers: 3, -0.5, 2e-3, 1/3.",
    "v_label": "V, one row for each value",
    "dout_label": "∂L/∂O, for the gradients",
    "dout_hint": "Leave this empty to compute no gradients.",
    "mask_label": "Mask",
    "no_mask": "none",
    "causal_mask": "causal, aligned at the end",
    "scaled_label": "scale by 1/√d_k",
    "query": "query",
    "key": "key",
    "row": "row",
    "column": "column",
    "exponentials_of_row": "row {row}:",
    "sum": "sum",
    "softmax_digits_text": "First, dA at the row's largest weight is subtracted from the whole row. The "
    "weights sum to 1, so dZ is the same, and a saturated row keeps its digits.",
    "attention_summary": "Output, {shape}: {numbers}",
    "see_below": "see below",
    **attention.SENTENCES,
    **{f"{name}_title": plain for name, plain, _, _ in attention_gradient.LINES},
    **{f"{name}_text": why for name, _, _, why in attention_gradient.LINES},
}

_CNN = {
    "cnn_legend": "Your own CNN",
    "image_label": "Image",
    "image_hint": "height x width x channels",
    "layers_label": "Layers",
    "layers_hint": "conv16k5 (sN pN dN gN same valid nobias), pool2 or avgpool2 (sN pN same valid ceil), "
    "flatten, dense100 (nobias); 3x2 is height x width",
    "axes": ["height", "width"],
    "unseen": "pixels at the end that no window covers: {pixels}",
    "elements": "elements",
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "channels": "channels",
    "pooled_alone": "each pooled separately",
    "one_a_filter": "one per filter",
    "all_layers": "all layers",
    "as_far_as": "Up to layer {number}",
    "stops_at": "The network stops at layer {number}.",
    "layers_header": list(cnn.HEADER),
    **cnn.SENTENCES,
}

_UNROLLED = {
    "unrolled_legend": "Unroll the network further",
    "steps_label": "Time steps T",  # the widget of question 4 shows it too
    "one_step": "1 step",
    "many_steps": "{steps} steps",
    "graph_text": "The inputs x₁ to {last} are below, the hidden states in the middle, the outputs above. "
    "Every input leads to its hidden state by W_xh. Every hidden state leads to the next by W_hh and to its "
    "output by W_hy. All time steps share these three matrices.",
    "solid_line": "W_xh: solid line, filled head",
    "dashed_line": "W_hh: dashes, diamond",
    "dotted_line": "W_hy: dots, open head",
    "edges_title": "Edges of the graph",
    "edges_header": ["from", "to", "weight"],
    "graph_as_table": "The graph as a table",
    "step_by_step_title": "Step by step",
    "unrolled_summary": "{time_steps}: {edges} edges, but only three matrices. {depth}",
    "depth": "x₁ passes through {steps} tanh on its way to {last}.",
    **unrolled_rnn.SENTENCES,
}

_VANISHING = {
    "vanishing_legend": "Make a gradient vanish",
    "network_label": "Recurrent matrix W",
    "units_label": "Units",
    "linear": "linear",
    "radius_label": "Spectral radius of W",
    "norms_title": "Norm of ∂h_T/∂h_t, T = {steps}",
    "tanh_text": "Each step back multiplies by diag(1 − h²) W; the norm of the product is at most the "
    "product of the norms.",
    "linear_text": "Each step back multiplies by W; the norm of the product is at most the product of the "
    "norms.",
    "norms_plot_title": "Norm of ∂h_T/∂h_t against t",
    "norms_plot_text": "The scale is logarithmic. The norm goes from {first} at t = 0 to 1 at t = {steps}; "
    "its bound starts at {bound}.",
    "time": "time t",
    "norm": "norm",
    "bound": "σ_max bound",
    "curves_as_table": "The curves as a table",  # the widget of question 8 shows it too
    "norms_table_title": "Norms against t",
    "norms_table_header": ["t", "norm", "bound"],
    "vanishing_summary": "Radius {radius}, T = {steps}: ‖∂h_T/∂h_0‖ = {norm}. The gradient {fate}, by a "
    "factor of {factor} a step.",
    "shrinks": "shrinks",
    "grows": "grows",
    "keeps_its_size": "keeps its size",
    "grows_first": "On the way it reaches {norm}, at t = {time}: the radius describes only the limit of many "
    "steps.",
}

_SATURATION = {
    "saturation_legend": "Saturate a softmax",
    "d_k_label": "Size of a query and a key, d_k",
    "one_component": "Scores of 1 component",
    "many_components": "Scores of {d_k} components",
    "draws_text": "{queries} queries and {keys} keys have independent components of mean 0 and variance 1. "
    "So Var(q·k) = d_k, and the scaled scores have variance 1. Means over the queries:",
    "variance": "variance of the scores",
    "entropy": "entropy of the weights, nats",
    "largest": "largest weight",
    "jacobian": "norm of the softmax's Jacobian",
    "saturation_plot_text": "The horizontal axis is d_k from {least} to {most}. At d_k = {d_k} the scaled "
    "value is {scaled}, the unscaled value {unscaled}.",
    "scaled": "scaled",
    "unscaled": "unscaled",
    "means_title": "At d_k = {d_k}",
    "plots_title": "Against d_k",
    "saturation_table_title": "Curves against d_k",
    "saturation_table_header": ["d_k", "largest, scaled", "unscaled", "Jacobian, scaled", "unscaled"],
    "saturation_summary": "d_k = {d_k}: the largest weight is {unscaled} without the scale and {scaled} with "
    "it. The scale multiplies the norm of the softmax's Jacobian by {ratio}.",
}

PARTS: tuple[Mapping[str, Sentence], ...] = (
    _EVERY_WIDGET,
    _MISTAKES_IN_MATRICES,
    _MISTAKES_IN_LAYERS,
    _ATTENTION,
    _CNN,
    _UNROLLED,
    _VANISHING,
    _SATURATION,
)
SENTENCES: dict[str, Sentence] = {name: said for part in PARTS for name, said in part.items()}
