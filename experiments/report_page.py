"""What the pages that we write share: head, style, pictures and settings as HTML.

And the fixed parts of a report on scores: the words on how to read it, and the script.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def head(title: str, style: str = "") -> str:
    """A page up to its body; `style` is CSS beside what all pages have."""
    return _HEAD.format(title=escape(title), style=STYLE + style)


def data_uri(pixels: UInt8[np.ndarray, "height width 3"], side: int) -> str:
    """A picture of at most `side` pixels as the source of an image."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=62, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def settings_table(settings: Mapping[str, Any]) -> str:
    """One row for each setting, those of nested ones with dots in their names."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in _flat(settings)
    )
    return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>'


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value)))
    return rows


TOOLS = (
    '<div class="tools"><input id="filter" type="search" placeholder="Filter by name" '
    'aria-label="Filter by name"><select id="sort" aria-label="Order">'
    '<option value="given">as scored</option><option value="peak">highest peak</option>'
    '<option value="name">name</option></select></div>'
)

GLOSSARY = """<footer><h2>How to read this</h2><dl>
<dt>before, after</dt><dd>The model writes a few hypotheses on what comes next and weighs them
before it sees the next frame (prior) and after (posterior).</dd>
<dt>KL</dt><dd>Bayesian surprise: the divergence of the posterior from the prior, in nats. It sees
how the hypotheses fare against one another.</dd>
<dt>JS</dt><dd>Their Jensen-Shannon divergence, in bits, between 0 and 1.</dd>
<dt>evidence</dt><dd>Minus the logarithm of the chance that the prior gave to what was seen, in
nats. It is high when every hypothesis is refuted, which KL can't see.</dd>
</dl></footer>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fcfbf8; --card: #f4f1eb; --rule: #dfdad0;
  --muted: #666b76; --ink: #22262e; --accent: #c8472a; --before: #a3aec0; --uniform: #4f6f8f;
  --wash: rgba(208, 81, 47, .1); }
@media (prefers-color-scheme: dark) { :root { --paper: #15171b; --card: #1f2228; --rule: #33373f;
  --muted: #9aa0ac; --ink: #e6e4df; --accent: #f0805f; --before: #5c677a; --uniform: #8fb0d0;
  --wash: rgba(240, 128, 95, .13); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 2.5rem clamp(1rem, 4vw, 2.5rem) 4rem;
  background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.15; margin: 0 0 .4rem;
  letter-spacing: -.015em; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 0; font-weight: 650; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 650; }
p { margin: 0; } a { color: var(--accent); }
.mark { color: var(--accent); font-weight: 650; letter-spacing: .02em; margin-bottom: .3rem; }
.facts, .peak, .muted, .meta { color: var(--muted); font-size: .87rem; }
.note { max-width: 44rem; margin-top: 1rem; padding: .7rem 1rem; background: var(--card);
  border-left: 3px solid var(--accent); border-radius: 0 6px 6px 0; }
.desk { display: grid; grid-template-columns: 17rem minmax(0, 1fr); gap: 2.5rem;
  margin-top: 2rem; border-top: 1px solid var(--rule); padding-top: 1.5rem; }
nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem);
  display: flex; flex-direction: column; }
nav ol { position: relative; list-style: none; margin: 0; padding: 0; overflow-y: auto; }
nav li { content-visibility: auto; contain-intrinsic-size: auto 4.9rem; }
nav a { display: block; padding: .55rem .7rem; border-radius: 7px; color: inherit;
  text-decoration: none; border-left: 3px solid transparent; }
nav a:hover { background: var(--card); }
nav a[aria-current] { background: var(--card); border-left-color: var(--accent); }
.name { display: block; font-weight: 550; overflow-wrap: anywhere; line-height: 1.3; }
.peak { display: block; font-size: .8rem; }
.spark { display: block; width: 100%; height: 22px; margin-top: .2rem; }
.spark polyline { fill: none; stroke: var(--accent); stroke-width: 1.2; opacity: .8;
  vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.tools { display: flex; gap: .4rem; padding-bottom: .6rem; }
input, select, button { font: inherit; font-size: .85rem; color: inherit; background: var(--paper);
  border: 1px solid var(--rule); border-radius: 6px; padding: .25rem .5rem; min-width: 0; }
.tools input { flex: 1; } button { cursor: pointer; } button:hover { background: var(--card); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
article h2 { overflow-wrap: anywhere; font-size: 1.35rem; }
.film { display: flex; gap: 5px; margin: 1rem 0 .3rem; }
.film img { flex: 1 1 0; min-width: 0; height: auto; border-radius: 5px; display: block;
  max-height: 9rem; object-fit: cover; cursor: pointer; opacity: .78; }
.film img:hover, .film img.now { opacity: 1; }
.film img.now { box-shadow: 0 0 0 2px var(--accent); }
.film.still img { cursor: default; opacity: 1; }
.plot { display: block; width: 100%; touch-action: pan-y; cursor: crosshair; border-radius: 6px;
  user-select: none; -webkit-user-select: none; }
.plot text { fill: var(--muted); font-size: 11.5px; } .plot .grid { stroke: var(--rule); }
.plot .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.plot .wash { fill: var(--wash); } .plot .lane { fill: var(--card); }
.plot .dot { fill: var(--paper); stroke: var(--accent); stroke-width: 1.5; }
.plot .chosen { stroke: var(--accent); } .plot .uniform { stroke: var(--uniform); }
.plot .cursor line { stroke: var(--ink); opacity: .55; }
.plot .cursor circle { fill: var(--accent); stroke: var(--paper); stroke-width: 2; }
.plot text.strong { fill: var(--accent); font-weight: 650; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem .5rem; align-items: center;
  margin: .7rem 0 1.1rem; }
.bar .when { font-weight: 650; font-size: 1.1rem; margin-right: auto; }
.step { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 2rem;
  padding-top: 1.1rem; border-top: 1px solid var(--rule); }
.saw { width: 100%; max-height: 24rem; object-fit: contain; border-radius: 7px; display: block;
  background: var(--card); }
.blank { aspect-ratio: 16 / 9; display: grid; place-items: center; color: var(--muted);
  background: var(--card); border-radius: 7px; font-size: .87rem; text-align: center; }
.window { display: flex; gap: 5px; margin-top: .9rem; max-width: 22rem; }
.window img { flex: 0 1 5rem; min-width: 0; border-radius: 4px; object-fit: cover; }
.caption { margin: .6rem 0 0; overflow-wrap: anywhere; }
.beliefs { list-style: none; margin: 0; padding: 0; }
.beliefs li { padding: .45rem 0 .55rem; }
.line { display: flex; gap: 1rem; align-items: baseline; }
.line .words { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.line .p { color: var(--muted); white-space: nowrap; }
.line .p b { color: var(--accent); font-weight: 650; }
.track { height: 6px; margin-top: 3px; background: var(--card); border-radius: 3px;
  overflow: hidden; }
.track i { display: block; height: 100%; border-radius: 3px; background: var(--before);
  transition: width .15s ease-out; }
.track.after i { background: var(--accent); }
.numbers { display: flex; flex-wrap: wrap; gap: .3rem 1.8rem; margin: 1rem 0 0;
  border-top: 1px solid var(--rule); padding-top: .8rem; }
.numbers div { display: flex; flex-direction: column-reverse; }
.numbers dt { color: var(--muted); font-size: .8rem; }
.numbers dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.strips { margin-top: 1.8rem; border-top: 1px solid var(--rule); padding-top: 1.1rem; }
.strips h3 { margin: .9rem 0 0; } .strips .film { margin: .4rem 0; }
.strips h3.by { color: var(--accent); } .strips h3.even { color: var(--uniform); }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 550; }
section, footer { margin-top: 2.5rem; border-top: 1px solid var(--rule); padding-top: 1.3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin-top: .6rem; width: 100%; }
th, td { text-align: left; padding: .35rem 1.2rem .35rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); font-size: .87rem; }
th { color: var(--muted); font-weight: 550; white-space: nowrap; }
td { overflow-wrap: anywhere; } #failures td:nth-child(2) { white-space: nowrap; }
.settings th { width: 1%; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem;
  max-width: 52rem; font-size: .9rem; }
footer dt { font-weight: 600; } footer dd { margin: 0; color: var(--muted); }
@media (max-width: 860px) {
  .desk { grid-template-columns: minmax(0, 1fr); gap: 1.5rem; }
  nav { position: static; } nav ol { max-height: 15rem; }
  .step { grid-template-columns: minmax(0, 1fr); gap: 1.4rem; }
  footer dl { grid-template-columns: 1fr; } footer dd { margin-bottom: .5rem; } }
@media (prefers-reduced-motion: reduce) { .track i { transition: none; } }
@media print { nav, .bar button { display: none; } .desk { display: block; } }
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const article = document.getElementById("video");
const list = document.getElementById("list");
const space = list ? list.querySelector("svg").namespaceURI : "";
let shown = -1, step = 0, pinned = false, redraw = null;

function set(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
}
// Text from the data only ever becomes a text node or an attribute.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  set(node, attributes || {});
  node.append(...children.filter(child => child !== null));
  return node;
}
function draw(parent, tag, attributes, text) {
  const node = document.createElementNS(space, tag);
  set(node, attributes);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const number = value => Math.abs(value) >= .1 || Math.abs(value) < 1e-9
  ? Math.abs(value) < 1e-9 ? "0.00" : value.toFixed(2) : String(+value.toPrecision(2));
const seconds = value => value.toFixed(value < 10 ? 2 : 1) + " s";
const spread = (items, most) => items.length <= most ? items
  : Array.from({length: most}, (_, i) => items[Math.round(i * (items.length - 1) / (most - 1))]);
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].find(n => n * power >= value * .999999) * power;
}
const clock = (value, end) => end < 90 ? +value.toFixed(2) + " s"
  : Math.floor(value / 60) + ":" + String(Math.floor(value % 60)).padStart(2, "0");
const peakOf = steps => steps.reduce((best, s, i) =>
  i > 0 && (best === 0 || s.score > steps[best].score + 1e-9) ? i : best, 0);

function picture(frame, time, css) {
  const uri = data.thumbnails[shown][frame];
  return uri ? el("img", {src: uri, class: css, alt: `frame ${frame}, ${seconds(time)}`}) : null;
}

function film(frames, times, label, click) {
  const kept = frames.map((frame, i) => i).filter(i => data.thumbnails[shown][frames[i]]);
  const tall = data.traces[shown].height > data.traces[shown].width;
  const room = Math.max(2, Math.floor(article.clientWidth / (tall ? 64 : 100)));
  const css = click ? "film" : "film still";
  const strip = el("div", {class: css, role: "group", "aria-label": label});
  for (const i of spread(kept, room)) {
    const image = picture(frames[i], times[i], "");
    image.style.maxWidth = 100 / Math.min(room, 6) + "%";
    image.dataset.index = i;
    if (click) image.addEventListener("click", () => click(i));
    strip.append(image);
  }
  return strip;
}

function plot(svg, trace, uniform) {
  const width = Math.max(svg.clientWidth, 240), left = 56, right = 12, top = 30, base = 180;
  const steps = trace.steps, end = Math.max(trace.seconds, ...steps.map(s => s.seconds)) || 1;
  const scores = steps.slice(1).map(s => s.score);
  const largest = Math.max(...scores.map(Math.abs), 0);
  const scale = largest > 1e-9 ? nice(largest) : 1;
  const floor = Math.min(...scores, 0) < -1e-9 ? -scale : 0;
  const x = t => left + (width - left - right) * t / end;
  const y = v => base - (base - top) * (v - floor) / (scale - floor);
  const lanes = trace.selected ? [[trace.selected, "chosen"], [uniform, "uniform"]] : [];
  const height = base + 30 + 24 * lanes.length;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = height + "px";
  svg.replaceChildren();
  for (const value of [floor, (floor + scale) / 2, scale]) {
    const at = y(value);
    draw(svg, "line", {class: "grid", x1: left, x2: width - right, y1: at, y2: at});
    draw(svg, "text", {x: left - 7, y: at + 4, "text-anchor": "end"}, +value.toPrecision(3));
  }
  const units = {kl: "KL, nats", js: "JS, bits", evidence: "evidence, nats"};
  const score = trace.settings.score || "kl";
  draw(svg, "text", {x: left, y: 14}, "surprise (" + (units[score] || score) + ")");
  const gaps = [.01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  const gap = gaps.find(t => end / t <= width / 75) || nice(end / 6);
  for (let t = 0; t <= end * 1.000001; t += gap) {
    const anchor = t + gap / 3 > end ? "end" : "middle";
    draw(svg, "text", {x: x(t), y: base + 18, "text-anchor": anchor}, clock(t, end));
  }
  const points = steps.map(s => [x(s.seconds), y(s.score)]), line = points.slice(1);
  if (line.length) {
    const path = line.map(p => p.map(v => v.toFixed(1)).join(",")).join(" ");
    const around = `${line[0][0]},${y(0)} ${path} ${line.at(-1)[0]},${y(0)}`;
    draw(svg, "polygon", {class: "wash", points: around});
    draw(svg, "polyline", {class: "curve", points: path});
    for (const [cx, cy] of line.length <= 40 ? line : [])
      draw(svg, "circle", {class: "dot", cx, cy, r: 3.2});
    const peak = peakOf(steps), late = points[peak][0] > width - 120;
    if (Math.max(...scores) - Math.min(...scores) > 1e-9)
      draw(svg, "text", {class: "strong", x: points[peak][0], y: points[peak][1] - 9,
        "text-anchor": late ? "end" : "middle"}, "peak " + number(steps[peak].score));
  }
  lanes.forEach(([selection, name], row) => {
    const from = base + 30 + 24 * row;
    const lane = {class: "lane", x: left, y: from, width: width - left - right, height: 17, rx: 3};
    draw(svg, "rect", lane);
    draw(svg, "text", {x: left - 7, y: from + 12.5, "text-anchor": "end"}, name);
    for (const t of selection.seconds)
      draw(svg, "line", {class: name, x1: x(t), x2: x(t), y1: from + 2.5, y2: from + 14.5});
  });
  const cursor = draw(svg, "g", {class: "cursor"});
  const hair = draw(cursor, "line", {y2: height - 7});
  const dot = draw(cursor, "circle", {r: 5.5});
  return {
    point(index) {
      const [cx, cy] = points[index];
      set(hair, {x1: cx, x2: cx, y1: cy});
      set(dot, {cx, cy});
    },
    nearest(clientX) {
      const at = clientX - svg.getBoundingClientRect().left;
      const far = points.map(([cx]) => Math.abs(cx - at));
      return far.indexOf(Math.min(...far));
    },
  };
}

function beliefs(s, index) {
  const rows = s.prior.map((prior, i) => {
    const words = i < s.hypotheses.length ? s.hypotheses[i] || "(empty)" : "something else";
    const known = [["NLL before", s.prior_nll], ["NLL after", s.posterior_nll],
      ["P(yes)", s.probe_yes]];
    const detail = known.filter(([, values]) => values && i < values.length)
      .map(([name, values]) => `${name} ${values[i].toFixed(2)}`);
    const bar = (value, css) => {
      const fill = el("i");
      fill.style.width = 100 * value + "%";
      return el("div", {class: css}, fill);
    };
    return el("li", {title: detail.join(", ")},
      el("div", {class: "line"}, el("span", {class: "words"}, words),
        el("span", {class: "p"}, prior.toFixed(2) + " → ",
          el("b", {}, s.posterior[i].toFixed(2)))),
      bar(prior, "track"), bar(s.posterior[i], "track after"));
  });
  if (rows.length) return el("ol", {class: "beliefs"}, ...rows);
  return el("p", {class: "muted"}, index ? "No hypotheses at this step."
    : "No hypotheses: the first frame has no past to expect it from.");
}

function inspector(trace, index) {
  const s = trace.steps[index];
  const before = new Map(trace.steps.map(other => [other.frame, other.seconds]));
  let past = s.window.map(f => picture(f, before.get(f) ?? f / trace.fps, ""));
  if (past.includes(null)) past = [];
  const figures = [["KL, nats", s.kl], ["JS, bits", s.js], ["evidence, nats", s.evidence]];
  return [
    el("div", {}, el("h3", {}, "It saw"),
      picture(s.frame, s.seconds, "saw")
        || el("div", {class: "blank"}, `frame ${s.frame}: no thumbnail kept`),
      el("p", {class: s.caption ? "caption" : "caption muted"}, s.caption || "(no caption)"),
      past.length ? el("div", {class: "window"}, ...past) : null,
      past.length ? el("p", {class: "peak"}, "the frames that it had seen just before") : null),
    el("div", {}, el("div", {class: "line"}, el("h3", {class: "words"}, "It expected"),
        el("span", {class: "p"}, "before → ", el("b", {}, "after"))), beliefs(s, index),
      el("dl", {class: "numbers"}, ...figures.map(([name, value]) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, number(value))))),
      s.history ? el("details", {}, el("summary", {}, "What it remembered"),
        el("p", {class: "caption muted"}, s.history)) : null),
  ];
}

function show(video, at) {
  const trace = data.traces[video], uniform = data.uniform[video], steps = trace.steps;
  shown = video; pinned = false;
  for (const link of list.querySelectorAll("a[aria-current]")) link.removeAttribute("aria-current");
  const link = list.querySelector(`a[href="#v${video}"]`);
  link.setAttribute("aria-current", "true");
  const place = link.parentElement.offsetTop;
  if (place < list.scrollTop || place > list.scrollTop + list.clientHeight - 60)
    list.scrollTop = place - list.clientHeight / 2;
  const name = link.querySelector(".name").textContent;
  const kinds = steps.some(s => s.probe_yes) ? "posterior by probe" : "posterior by likelihood";
  const meta = [seconds(trace.seconds), +trace.fps.toPrecision(4) + " fps",
    `${trace.width}×${trace.height}`, steps.length + " steps", kinds, trace.model].join(" · ");
  const svg = document.createElementNS(space, "svg");
  set(svg, {class: "plot", tabindex: 0, role: "slider", "aria-label": "Time step",
    "aria-valuemin": 0, "aria-valuemax": steps.length - 1});
  const when = el("span", {class: "when"}), panel = el("div", {class: "step"});
  const button = (label, act) => {
    const node = el("button", {type: "button"}, label);
    node.addEventListener("click", act);
    return node;
  };
  const strips = el("div", trace.selected ? {class: "strips"} : {});
  let strip = el("div"), chart = null;
  function go(index, pin) {
    step = Math.min(Math.max(index, 0), steps.length - 1);
    if (pin !== undefined) pinned = pin;
    chart.point(step);
    const words = `Step ${step} at ${seconds(steps[step].seconds)}`;
    when.textContent = words + (pinned ? " · held, click again to release" : "");
    const score = number(steps[step].score);
    set(svg, {"aria-valuenow": step, "aria-valuetext": `${words}, surprise ${score}`});
    const images = [...strip.children];
    const far = images.map(image => Math.abs(image.dataset.index - step));
    const near = far.indexOf(Math.min(...far));
    images.forEach((image, i) => image.classList.toggle("now", i === near));
    const open = panel.querySelector("details[open]") !== null;
    panel.replaceChildren(...inspector(trace, step));
    if (open && panel.querySelector("details")) panel.querySelector("details").open = true;
  }
  const bar = el("div", {class: "bar"}, when, button("Previous", () => go(step - 1)),
    button("Next", () => go(step + 1)), button("Peak", () => go(peakOf(steps))));
  svg.addEventListener("pointermove", event => { if (!pinned) go(chart.nearest(event.clientX)); });
  svg.addEventListener("click", event => {
    const index = chart.nearest(event.clientX);
    go(index, !(pinned && index === step));
  });
  svg.addEventListener("keydown", event => {
    const moves = {ArrowLeft: step - 1, ArrowDown: step - 1, ArrowRight: step + 1,
      ArrowUp: step + 1, PageDown: step - 10, PageUp: step + 10, Home: 0, End: steps.length - 1};
    if (event.key === "Escape") go(step, false);
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(moves[event.key]);
  });
  const head = [el("h2", {}, name), el("p", {class: "meta"}, meta)];
  article.replaceChildren(...head, strip, svg, bar, panel, strips);
  redraw = () => {
    const times = steps.map(s => s.seconds);
    const fresh = film(steps.map(s => s.frame), times, "Scored frames", i => go(i));
    strip.replaceWith(fresh);
    strip = fresh;
    chart = plot(svg, trace, uniform);
    const selections = trace.selected ? [[uniform, "Uniform", "even"]] : [];
    if (trace.selected)
      selections.unshift([trace.selected, "Chosen by " + trace.selected.method, "by"]);
    strips.replaceChildren(...selections.flatMap(([selection, title, css]) => [
      el("h3", {class: css}, title,
        el("span", {class: "muted"}, ` · ${selection.frames.length} frames`)),
      film(selection.frames, selection.seconds, title, null)]));
    go(step);
  };
  step = at === undefined ? peakOf(steps) : at;
  redraw();
}

if (list) {
  const follow = () => {
    const match = /^#v(\d+)(?:s(\d+))?$/.exec(location.hash);
    if (match && data.traces[+match[1]]) show(+match[1], match[2] && +match[2]);
    else if (shown < 0) show(0);
  };
  addEventListener("hashchange", follow);
  follow();
  let width = article.clientWidth;
  new ResizeObserver(() => {
    if (article.clientWidth !== width) { width = article.clientWidth; redraw(); }
  }).observe(article);
  const rows = [...list.children], filter = document.getElementById("filter");
  if (filter) {
    const names = new Map(rows.map(row => [row, row.querySelector(".name").textContent]));
    filter.addEventListener("input", () => {
      const part = filter.value.toLowerCase();
      for (const row of rows) row.hidden = !names.get(row).toLowerCase().includes(part);
    });
    const orders = {given: () => 0, peak: (a, b) => b.dataset.peak - a.dataset.peak,
      name: (a, b) => names.get(a).localeCompare(names.get(b))};
    document.getElementById("sort").addEventListener("change", event =>
      list.append(...[...rows].sort(orders[event.target.value])));
  }
}
"""
