// A square of pixels to draw on with a mouse, a finger, a pen or the keyboard.

import { el } from "./dom.js";

/** Create the grid. values: one number for each pixel, which the grid changes. onChange: called after each change. */
export function createGrid(features, width, values, onChange) {
  const highest = Math.max(1, ...features.map((feature) => feature.range[1]));
  let erasing = false;
  let place = 0; // the cell that the keyboard is on
  const cells = values.map((_, i) => el("div", { role: "gridcell", tabindex: i ? -1 : 0, class: "pixel" }));
  const rows = Array.from({ length: width }, (_, row) =>
    el("div", { role: "row" }, cells.slice(row * width, (row + 1) * width)));
  const grid = el("div", {
    role: "grid", class: "pixels", "aria-label": `Drawing, ${width} by ${width} pixels`,
    "aria-describedby": "grid-help",
  }, rows);
  grid.style.setProperty("--width", width);

  function paint(i) {
    const share = Math.min(1, Math.max(0, values[i] / highest));
    cells[i].style.setProperty("--ink-share", `${Math.round(100 * share)}%`);
    cells[i].setAttribute("aria-label",
      `row ${Math.floor(i / width) + 1}, column ${(i % width) + 1}: ${Math.round(100 * share)} percent`);
  }

  function set(i, value) {
    values[i] = Math.min(highest, Math.max(0, value));
    paint(i);
  }

  function refresh() {
    values.forEach((_, i) => paint(i));
  }

  // A stroke inks a cell, and the cells beside it a little, as the strokes of the training images do.
  function stroke(x, y) {
    const box = grid.getBoundingClientRect();
    const column = ((x - box.left) / box.width) * width;
    const row = ((y - box.top) / box.height) * width;
    for (let i = 0; i < values.length; i += 1) {
      const distance = Math.hypot((i % width) + 0.5 - column, Math.floor(i / width) + 0.5 - row);
      const ink = distance < 0.6 ? 1 : distance < 1.05 ? 0.45 : 0;
      if (ink) set(i, erasing ? 0 : Math.max(values[i], ink * highest));
    }
    onChange();
  }

  let last = null;
  grid.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    grid.setPointerCapture(event.pointerId);
    erasing = event.button === 2 || event.buttons === 32;
    last = [event.clientX, event.clientY];
    stroke(...last);
  });
  grid.addEventListener("pointermove", (event) => {
    if (last === null) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) {
      const step = grid.clientWidth / width / 3;
      const [x, y] = last;
      const count = Math.max(1, Math.ceil(Math.hypot(point.clientX - x, point.clientY - y) / step));
      for (let i = 1; i <= count; i += 1) {
        stroke(x + ((point.clientX - x) * i) / count, y + ((point.clientY - y) * i) / count);
      }
      last = [point.clientX, point.clientY];
    }
  });
  for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => { last = null; });
  grid.addEventListener("contextmenu", (event) => event.preventDefault());

  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width };
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in moves) {
      const next = place + moves[event.key];
      const sameRow = Math.floor(next / width) === Math.floor(place / width);
      if (next >= 0 && next < values.length && (sameRow || Math.abs(moves[event.key]) === width)) {
        cells[place].tabIndex = -1;
        place = next;
        cells[place].tabIndex = 0;
        cells[place].focus();
      }
    } else if (event.key === " " || event.key === "Enter") {
      set(place, values[place] > highest / 2 ? 0 : highest);
      onChange();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      set(place, 0);
      onChange();
    } else {
      return;
    }
    event.preventDefault();
  });
  grid.addEventListener("focusin", (event) => { place = Math.max(0, cells.indexOf(event.target)); });
  refresh();
  return { node: grid, refresh };
}
