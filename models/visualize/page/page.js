"use strict";

// The page of `python -m models.visualize --html`. The data is described in models/visualize/html.py.
//
// Above, functions of the data, without the page; tests run them in node. Below, the page: `state` says what is
// selected, `draw` draws the page for it. A patch is selected by its place in the image, from 0 to 1 on each axis, so
// that the place stays while the size of the feature map changes from layer to layer.

const VIEWS = {
  attention: ["attention", "The attention of the selected patch, in each head and on average. Colours: from the " +
    "smallest to the largest share among the heads; the mean of the heads has its own scale."],
  rollout: ["rollout", "Attention rollout: what each patch of the image contributes to the selected patch, in each " +
    "layer, if values and MLPs are ignored. Colours: from the smallest to the largest share in this layer."],
  kernels: ["kernel and field", "The depthwise kernel of one channel, at the selected patch. Red: positive weights, " +
    "blue: negative. Dashed: the receptive field, the part of the image that the patch depends on."],
  norms: ["token norms", "The norm of each patch of the output of each layer. Colours: from the smallest to the " +
    "largest norm among all images, in each layer."],
  colours: ["feature colours", "The first three principal components of the output as red, green and blue, in each " +
    "layer: patches of one colour have similar features."],
};

// Data -----------------------------------------------------------------------------------------------------------------

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** The index of the number in ascending `numbers` that is nearest to `value`. */
function nearest(numbers, value) {
  let best = 0;
  numbers.forEach((number, i) => {
    if (Math.abs(number - value) < Math.abs(numbers[best] - value)) best = i;
  });
  return best;
}

/** The patch [row, column] of a layer at a place of the image, [y, x] from 0 to 1. */
function patchAt(layer, size, place) {
  return [0, 1].map((axis) => clamp(Math.floor((place[axis] * size[axis]) / layer.cell[axis]), 0, layer.grid[axis] - 1));
}

/** The place of the center of a patch. */
function placeOf(layer, size, patch) {
  return [0, 1].map((axis) => Math.min(((patch[axis] + 0.5) * layer.cell[axis]) / size[axis], 0.9999));
}

/** The stored query for a patch: its row in the array of attention, and the patch it belongs to. */
function queryOf(layer, tokens, patch) {
  const [row, column] = [nearest(layer.rows, patch[0]), nearest(layer.columns, patch[1])];
  return {index: tokens + row * layer.columns.length + column, patch: [layer.rows[row], layer.columns[column]]};
}

/** A row of attention: one head (of a ViT, `layer.heads` is the rollout), one query. Each row has its own scale. */
function rowOf(layer, stored, head, query, tokens, keys) {
  const queries = tokens + layer.rows.length * layer.columns.length;
  const row = head * queries + query;
  return Array.from(stored.attention.subarray(row * keys, (row + 1) * keys), (q) => (q * stored.scales[row]) / 255);
}

/** The patches of the window of a patch, as [row, column] of the padded map, in the order of the keys. The map is rolled
    up and left by the shift, and then cut into windows. */
function windowOf(layer, patch) {
  const {size, padded, shift} = layer.window;
  const first = [0, 1].map((axis) => {
    const rolled = (patch[axis] - shift[axis] + padded[axis]) % padded[axis];
    return Math.floor(rolled / size[axis]) * size[axis];
  });
  const keys = [];
  for (let i = 0; i < size[0]; i++) {
    for (let j = 0; j < size[1]; j++) {
      keys.push([(first[0] + i + shift[0]) % padded[0], (first[1] + j + shift[1]) % padded[1]]);
    }
  }
  return keys;
}

/** The edge over which the roll takes a patch: 0: none; 1: left; 2: top; 3: both. The mask keeps attention among the
    patches of a window with the same region. */
function regionOf(layer, patch) {
  return 2 * (patch[0] < layer.window.shift[0]) + (patch[1] < layer.window.shift[1]);
}

/** The first and last row and column of the image in the receptive field of a patch; some may be outside the image. */
function fieldOf(layer, patch) {
  const [jump, before, after] = layer.field;
  return [patch[0] * jump - before, patch[0] * jump + after, patch[1] * jump - before, patch[1] * jump + after];
}

/** The heat of each head for one query, each a map of h · w values, NaN where the head cannot attend; and the shares of
    the tokens without a position. */
function headMaps(layer, stored, data, query, patch, heads) {
  const [h, w] = layer.grid;
  return heads.map((head) => {
    const map = new Array(h * w).fill(NaN);
    if (layer.window) {
      const keys = windowOf(layer, patch);
      const row = rowOf(layer, stored, head, query, 0, keys.length);
      const region = regionOf(layer, patch);
      keys.forEach(([i, j], key) => {
        if (i < h && j < w && regionOf(layer, [i, j]) === region) map[i * w + j] = row[key];
      });
      return {map, tokens: []};
    }
    const row = rowOf(layer, stored, head, query, data.tokens.length, data.prefix + h * w);
    row.slice(data.prefix).forEach((value, key) => (map[key] = value));
    return {map, tokens: row.slice(0, data.prefix)};
  });
}

function meanMap(maps) {
  const mean = (of) => of(maps[0]).map((_, i) => maps.reduce((sum, each) => sum + of(each)[i], 0) / maps.length);
  return {map: mean((each) => each.map), tokens: mean((each) => each.tokens)};
}

/** The smallest and the largest of the values of some maps. */
function rangeOf(maps) {
  const values = maps.flatMap((map) => map.filter((value) => !Number.isNaN(value)));
  return values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
}

/** From black over red to yellow, for t from 0 to 1. */
function heatColour(t) {
  const stops = [[10, 7, 34], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const place = clamp(t, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((channel, c) => Math.round(channel + (place - i) * (stops[i + 1][c] - channel)));
}

/** From blue over white to red, for t from -1 to 1. */
function signedColour(t) {
  const end = t < 0 ? [33, 102, 172] : [178, 24, 43];
  return end.map((channel) => Math.round(247 + clamp(Math.abs(t), 0, 1) * (channel - 247)));
}

/** The paragraphs of a docstring: equations and code keep their lines, those of other text are joined. */
function paragraphsOf(doc) {
  return doc.split(/\n\s*\n/).filter((text) => text.trim()).map((text) => {
    const asIs = /^ |   /m.test(text) || (text.includes("\n") && text.indexOf("\n") < 60);
    if (!asIs) return {asIs, text: text.replaceAll(/\s+/g, " ")};
    const lines = text.split("\n");
    const indent = Math.min(...lines.map((line) => line.search(/\S|$/)));
    return {asIs, text: lines.map((line) => line.slice(indent)).join("\n")};
  });
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
}

// The page -------------------------------------------------------------------------------------------------------------

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = {image: 0, layer: data.layers.length - 1, view: "", head: -1, place: [0.5, 0.5], token: -1, kept: false};
  const decoded = new Map(); // "image/layer" -> arrays
  const pictures = data.images.map(pictureOf);
  state.view = data.layers[state.layer].views[0];

  function layerData(image, l) {
    const key = `${image}/${l}`;
    if (!decoded.has(key)) {
      const stored = data.layers[l].images[image];
      decoded.set(key, {
        norms: bytesOf(stored.norms),
        colours: bytesOf(stored.colours),
        attention: stored.attention && bytesOf(stored.attention),
        scales: stored.scales && new Float32Array(bytesOf(stored.scales).buffer),
      });
    }
    return decoded.get(key);
  }

  /** What is selected in a layer: the patch, and the query whose row of attention is stored. */
  function selected(l) {
    const layer = data.layers[l];
    const patch = patchAt(layer, data.size, state.place);
    if (!layer.rows) return {patch, query: -1, token: -1};
    if (state.token >= 0) return {patch: null, query: state.token, token: state.token};
    const query = queryOf(layer, data.tokens.length, patch);
    return {patch: query.patch, query: query.index, token: -1};
  }

  /** The map of a layer in this view as {map, range, tokens} or {colours}. */
  function shown(l, view, head) {
    const layer = data.layers[l];
    const stored = layerData(state.image, l);
    if (view === "norms") {
      const [low, high] = layer.norms;
      return {map: Array.from(stored.norms, (q) => low + (q / 255) * (high - low)), range: layer.norms, tokens: []};
    }
    if (view === "colours") return {colours: stored.colours, tokens: []};
    const {patch, query} = selected(l);
    if (view === "rollout") {
      const [flow] = headMaps(layer, stored, data, query, patch, [layer.heads]);
      return {...flow, range: rangeOf([flow.map])};
    }
    const all = headMaps(layer, stored, data, query, patch, [...Array(layer.heads).keys()]);
    const each = head < 0 ? meanMap(all) : all[head];
    return {...each, range: rangeOf(head < 0 ? [each.map] : all.map((one) => one.map))};
  }

  // Drawing ------------------------------------------------------------------------------------------------------------

  /** Canvases of an image, in colour and in grey. */
  function pictureOf(image) {
    const [h, w] = image.shape;
    const rgb = bytesOf(image.rgb);
    const grey = new Uint8Array(rgb.length);
    for (let i = 0; i < rgb.length; i++) {
      const first = i - (i % 3);
      grey[i] = (rgb[first] + rgb[first + 1] + rgb[first + 2]) / 3;
    }
    return {colour: canvasOf(h, w, rgb), grey: canvasOf(h, w, grey)};
  }

  function canvasOf(h, w, rgb) {
    const canvas = Object.assign(document.createElement("canvas"), {width: w, height: h});
    const pixels = new ImageData(w, h);
    for (let i = 0; i < h * w; i++) pixels.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  /** Draw the image and over it a map; `scale` is the size of a pixel of the image on the canvas. */
  function drawMap(context, l, map, scale) {
    const layer = data.layers[l];
    const [h, w] = layer.grid;
    const {colour, grey} = pictures[state.image];
    const extent = data.images[state.image].extent;
    context.imageSmoothingEnabled = data.size[0] > 100;
    const background = map.map ? grey : colour;
    context.drawImage(background, 0, 0, extent[1] * scale, extent[0] * scale);
    const edges = (count, cell) => Array.from({length: count + 1}, (_, i) => Math.round(i * cell * scale));
    const [tops, lefts] = [edges(h, layer.cell[0]), edges(w, layer.cell[1])];
    for (let i = 0; i < h; i++) {
      for (let j = 0; j < w; j++) {
        const k = i * w + j;
        if (map.colours) {
          context.fillStyle = `rgb(${map.colours.slice(3 * k, 3 * k + 3).join(" ")})`;
        } else if (map.map && !Number.isNaN(map.map[k])) {
          const [low, high] = map.range;
          const t = high > low ? (map.map[k] - low) / (high - low) : 0;
          context.fillStyle = `rgb(${heatColour(t).join(" ")} / ${0.3 + 0.55 * t})`;
        } else continue;
        context.fillRect(lefts[j], tops[i], lefts[j + 1] - lefts[j], tops[i + 1] - tops[i]);
      }
    }
  }

  /** Outline a rectangle of the image, in pixels: white on black, visible on every image. */
  function outline(context, scale, top, bottom, left, right, colour, width, dash = []) {
    for (const [style, line] of [["#000", width + 2], [colour, width]]) {
      context.setLineDash(style === "#000" ? [] : dash);
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
    }
    context.setLineDash([]);
  }

  function outlinePatch(context, l, [i, j], scale, colour, width) {
    const [ch, cw] = data.layers[l].cell;
    outline(context, scale, i * ch, (i + 1) * ch, j * cw, (j + 1) * cw, colour, width);
  }

  /** Windows: thin lines around each patch's own window, with the patches that the mask excludes crossed out. */
  function drawWindow(context, l, patch, scale) {
    const layer = data.layers[l];
    const [ch, cw] = layer.cell;
    const keys = windowOf(layer, patch).filter(([i, j]) => i < layer.grid[0] && j < layer.grid[1]);
    const inside = new Set(keys.map(String));
    const region = regionOf(layer, patch);
    for (const [i, j] of keys) {
      if (regionOf(layer, [i, j]) !== region) {
        context.fillStyle = "rgb(0 0 0 / 55%)";
        context.fillRect(j * cw * scale, i * ch * scale, cw * scale, ch * scale);
        context.strokeStyle = "#fff";
        context.lineWidth = 1;
        context.beginPath();
        context.moveTo((j + 0.25) * cw * scale, (i + 0.25) * ch * scale);
        context.lineTo((j + 0.75) * cw * scale, (i + 0.75) * ch * scale);
        context.moveTo((j + 0.75) * cw * scale, (i + 0.25) * ch * scale);
        context.lineTo((j + 0.25) * cw * scale, (i + 0.75) * ch * scale);
        context.stroke();
      }
    }
    const lines = (style, width) => {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.beginPath();
      for (const [i, j] of keys) {
        const [top, left, bottom, right] = [i * ch, j * cw, (i + 1) * ch, (j + 1) * cw].map((side) => side * scale);
        for (const [di, dj, x0, y0, x1, y1] of [
          [-1, 0, left, top, right, top], [1, 0, left, bottom, right, bottom],
          [0, -1, left, top, left, bottom], [0, 1, right, top, right, bottom],
        ]) {
          if (!inside.has(String([i + di, j + dj]))) {
            context.moveTo(x0, y0);
            context.lineTo(x1, y1);
          }
        }
      }
      context.stroke();
    };
    lines("#000", 5);
    lines("#ff5c8a", 2.5);
  }

  /** A kernel (k, k) of a channel, in a square of `side` at (left, top). */
  function drawKernel(context, kernels, channel, left, top, height, width, alpha) {
    const k = kernels.side;
    const bytes = kernels.bytes ?? (kernels.bytes = bytesOf(kernels.data));
    for (let i = 0; i < k; i++) {
      for (let j = 0; j < k; j++) {
        const t = (bytes[(channel * k + i) * k + j] - 128) / 127;
        context.fillStyle = `rgb(${signedColour(t).join(" ")} / ${alpha})`;
        const [x0, x1] = [left + (j * width) / k, left + ((j + 1) * width) / k];
        context.fillRect(x0, top + (i * height) / k, x1 - x0, height / k);
      }
    }
  }

  /** Give a canvas the resolution of the screen; returns the scale from pixels of the image. */
  function resize(canvas, width) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round((canvas.width * data.size[0]) / data.size[1]));
    return canvas.width / data.size[1];
  }

  function drawPicture() {
    const canvas = $("picture");
    const scale = resize(canvas, canvas.clientWidth);
    const context = canvas.getContext("2d");
    const layer = data.layers[state.layer];
    const {patch, token} = selected(state.layer);
    if (state.view === "kernels") {
      drawMap(context, state.layer, {}, scale);
      const head = Math.max(state.head, 0);
      const [ch, cw] = layer.cell;
      const reach = (layer.kernels.side - 1) / 2;
      const [top, left] = [(patch[0] - reach) * ch, (patch[1] - reach) * cw];
      const [height, width] = [layer.kernels.side * ch, layer.kernels.side * cw];
      drawKernel(context, layer.kernels, head, left * scale, top * scale, height * scale, width * scale, 0.7);
      outline(context, scale, top, top + height, left, left + width, "#ff5c8a", 2);
      const [y0, y1, x0, x1] = fieldOf(layer, patch);
      const inside = (value, high) => clamp(value, 0, high);
      outline(
        context, scale, inside(y0, data.size[0]), inside(y1 + 1, data.size[0]), inside(x0, data.size[1]),
        inside(x1 + 1, data.size[1]), "#ffd166", 3, [8, 6],
      );
    } else {
      drawMap(context, state.layer, shown(state.layer, state.view, state.head), scale);
      if (layer.window && state.view === "attention") drawWindow(context, state.layer, patch, scale);
    }
    if (token < 0) outlinePatch(context, state.layer, patch, scale, "#39ff14", state.kept ? 4 : 2);
  }

  function drawLegend() {
    const context = $("bar").getContext("2d");
    const signed = state.view === "kernels";
    $("legend").style.visibility = state.view === "colours" ? "hidden" : "visible";
    for (let i = 0; i < 256; i++) {
      context.fillStyle = `rgb(${(signed ? signedColour(i / 127.5 - 1) : heatColour(i / 255)).join(" ")})`;
      context.fillRect(i, 0, 1, 1);
    }
    if (state.view === "colours") return;
    if (signed) {
      const {scale} = data.layers[state.layer].kernels;
      [$("low").textContent, $("high").textContent] = [`-${scale.toPrecision(2)}`, `+${scale.toPrecision(2)}`];
      return;
    }
    const {range} = shown(state.layer, state.view, state.head);
    const text = state.view === "norms" ? (value) => value.toPrecision(3) : percent;
    [$("low").textContent, $("high").textContent] = range.map(text);
  }

  function headName() {
    if (state.view === "kernels") return `channel ${Math.max(state.head, 0) + 1}`;
    return state.head < 0 ? "mean of the heads" : `head ${state.head + 1}`;
  }

  function drawStatus() {
    const layer = data.layers[state.layer];
    const {patch, token} = selected(state.layer);
    const [, w] = layer.grid;
    const name = ([i, j]) => `row ${i + 1}, column ${j + 1}`;
    const query = token < 0 ? `Patch in ${name(patch)} of ${layer.grid.join(" x ")}` : capital(data.tokens[token]);
    let text = `${query}. `;
    if (state.view === "attention" || state.view === "rollout") {
      const {map, tokens} = shown(state.layer, state.view, state.head);
      const best = map.reduce((at, value, k) => (value > (map[at] ?? -1) ? k : at), -1);
      const to = [Math.floor(best / w), best % w];
      const subject = state.view === "rollout" ? "Rollout" : capital(headName());
      text += `${subject}: most to ${name(to)}, ${percent(map[best])}`;
      const prefix = data.tokens.slice(data.tokens.length - tokens.length); // without "the average patch"
      text += prefix.map((each, t) => `; to ${each} ${percent(tokens[t])}`).join("") + ". ";
      if (layer.window) {
        const {size, shift} = layer.window;
        text += shift.some(Boolean)
          ? `Windows of ${size.join(" x ")}, shifted by ${shift.join(" and ")}; crossed out: masked. `
          : `Windows of ${size.join(" x ")}, not shifted. `;
      }
      const count = layer.rows.length * layer.columns.length;
      if (count < layer.grid[0] * layer.grid[1]) {
        text += `To keep the page small, it has the attention of ${count} of ${layer.grid[0] * w} patches; with fewer ` +
          "images, of more. ";
      }
    } else if (state.view === "norms") {
      text += `Norm ${shown(state.layer, "norms", 0).map[patch[0] * w + patch[1]].toPrecision(3)}. `;
    } else if (state.view === "kernels") {
      const [y0, y1, x0, x1] = fieldOf(layer, patch);
      text += `${capital(headName())}: a kernel of ${layer.kernels.side} x ${layer.kernels.side} patches. ` +
        `Receptive field: ${y1 - y0 + 1} x ${x1 - x0 + 1} pixels, before it is cut at the border. `;
    }
    $("status").textContent = text + (state.kept ? "Kept: click again to release." : "");
  }

  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  /** The small maps: heads in the view of attention, channels in the view of kernels, else layers. */
  function drawMaps() {
    const layer = data.layers[state.layer];
    const items = [];
    if (state.view === "attention") {
      for (let head = -1; head < layer.heads; head++) {
        items.push([head < 0 ? "mean" : `head ${head + 1}`, state.head === head, {head}, (context, scale) =>
          drawMap(context, state.layer, shown(state.layer, "attention", head), scale)]);
      }
    } else if (state.view === "kernels") {
      for (let head = 0; head < layer.kernels.count; head++) {
        items.push([String(head + 1), Math.max(state.head, 0) === head, {head}, (context, scale, canvas) =>
          drawKernel(context, layer.kernels, head, 0, 0, canvas.height, canvas.width, 1)]);
      }
    } else {
      data.layers.forEach((each, l) => {
        if (!each.views.includes(state.view)) return;
        items.push([String(l + 1), state.layer === l, {layer: l}, (context, scale) =>
          drawMap(context, l, shown(l, state.view, 0), scale)]);
      });
    }
    $("maps").className = state.view === "kernels" ? "kernels" : "";
    const buttons = reuse($("maps"), items.length, () => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("canvas"), document.createElement("span"));
      return button;
    });
    items.forEach(([name, pressed, change, paint], i) => {
      const [canvas, label] = buttons[i].children;
      const scale = resize(canvas, state.view === "kernels" ? 48 : 110);
      if (state.view === "kernels") canvas.height = canvas.width;
      paint(canvas.getContext("2d"), scale, canvas);
      label.textContent = name;
      buttons[i].setAttribute("aria-pressed", pressed);
      buttons[i].onclick = () => set(change);
    });
  }

  /** The children of an element, as many as `count`, made by `make` where there are none yet. */
  function reuse(parent, count, make) {
    while (parent.children.length > count) parent.lastChild.remove();
    while (parent.children.length < count) parent.append(make());
    return [...parent.children];
  }

  function plainButtons(parent, names, isPressed, change) {
    const buttons = reuse(parent, names.length, () => {
      return Object.assign(document.createElement("button"), {type: "button"});
    });
    names.forEach((name, i) => {
      buttons[i].textContent = name;
      buttons[i].setAttribute("aria-pressed", isPressed(i));
      buttons[i].onclick = () => set(change(i));
    });
  }

  function drawControls() {
    const layer = data.layers[state.layer];
    $("layer-name").textContent = `${state.layer + 1} of ${data.layers.length}: ${layer.name} (${layer.kind})`;
    $("layer").value = state.layer;
    plainButtons($("views"), layer.views.map((view) => VIEWS[view][0]), (i) => layer.views[i] === state.view,
      (i) => ({view: layer.views[i]}));
    const withTokens = state.view === "attention" || state.view === "rollout";
    plainButtons($("tokens"), withTokens ? data.tokens.map((name) => `from ${name}`) : [], (i) => state.token === i,
      (i) => ({token: state.token === i ? -1 : i, kept: state.token !== i}));
    $("note").textContent = VIEWS[state.view][1];
    [...$("images").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.image));
    const image = data.images[state.image];
    $("picture").setAttribute("aria-label", `${image.name}, ${VIEWS[state.view][0]}`);
    $("prediction").hidden = !image.prediction.length;
    $("classes").replaceChildren(...image.prediction.map(([name, share]) => {
      const row = document.createElement("tr");
      const head = Object.assign(document.createElement("th"), {textContent: name, scope: "row"});
      const bar = document.createElement("div");
      bar.style.width = `${Math.max(100 * share, 0.5)}%`;
      const [middle, end] = [document.createElement("td"), document.createElement("td")];
      middle.append(bar);
      end.textContent = `${(100 * share).toFixed(1)} %`;
      row.append(head, middle, end);
      return row;
    }));
    $("docs").replaceChildren(...layer.docs[state.view].flatMap((d) => {
      const doc = data.docs[d];
      const title = document.createElement("h3");
      const file = Object.assign(document.createElement("code"), {textContent: doc.file});
      title.append(`${doc.name}, `, file);
      return [title, ...paragraphsOf(doc.text).map(({asIs, text}) => {
        const element = Object.assign(document.createElement(asIs ? "pre" : "p"), {textContent: text});
        if (asIs) element.tabIndex = 0; // so that the keyboard can scroll it
        return element;
      })];
    }));
  }

  // Changes ------------------------------------------------------------------------------------------------------------

  /** Change the state, and draw the page: at most once for each frame of the screen. */
  function set(change) {
    const patchOnly = Object.keys(change).every((key) => ["place", "token", "kept", "head"].includes(key));
    Object.assign(state, change);
    const layer = data.layers[state.layer];
    if (!layer.views.includes(state.view)) state.view = layer.views[0];
    const heads = state.view === "kernels" ? layer.kernels.count : layer.heads ?? 0;
    if (state.head >= heads) state.head = heads - 1;
    if (!patchOnly || "token" in change) drawControls();
    if (!set.waiting) requestAnimationFrame(draw);
    set.waiting = true;
  }

  function draw() {
    set.waiting = false;
    drawPicture();
    drawLegend();
    drawStatus();
    drawMaps();
  }

  function placeUnder(event) {
    const box = $("picture").getBoundingClientRect();
    return [
      clamp((event.clientY - box.top) / box.height, 0, 0.9999), clamp((event.clientX - box.left) / box.width, 0, 0.9999),
    ];
  }

  /** The patch beside the selected one; with sampled queries, the next patch that has one. */
  function step(down, right) {
    const layer = data.layers[state.layer];
    const patch = patchAt(layer, data.size, state.place);
    const withRows = layer.rows && (state.view === "attention" || state.view === "rollout");
    const next = [[layer.rows, down], [layer.columns, right]].map(([stored, by], axis) => {
      if (!withRows) return clamp(patch[axis] + by, 0, layer.grid[axis] - 1);
      return stored[clamp(nearest(stored, patch[axis]) + by, 0, stored.length - 1)];
    });
    set({place: placeOf(layer, data.size, next), token: -1, kept: true});
  }

  const next = (value, count) => (value + 1) % count;

  const KEYS = {
    ArrowUp: () => step(-1, 0),
    ArrowDown: () => step(1, 0),
    ArrowLeft: () => step(0, -1),
    ArrowRight: () => step(0, 1),
    "+": () => set({layer: Math.min(state.layer + 1, data.layers.length - 1)}),
    "-": () => set({layer: Math.max(state.layer - 1, 0)}),
    h: () => {
      const layer = data.layers[state.layer];
      const kernels = state.view === "kernels";
      if (kernels) set({head: next(Math.max(state.head, 0), layer.kernels.count)});
      else if (state.view === "attention") set({head: next(state.head + 1, layer.heads + 1) - 1});
    },
    v: () => {
      const {views} = data.layers[state.layer];
      set({view: views[next(views.indexOf(state.view), views.length)]});
    },
    i: () => set({image: next(state.image, data.images.length)}),
  };
  KEYS["="] = KEYS["+"]; // the key of + without shift

  document.addEventListener("keydown", (event) => {
    const action = KEYS[event.key];
    const ownArrows = event.target.matches("input, pre") && event.key.startsWith("Arrow");
    if (!action || ownArrows || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    action();
  });
  $("picture").addEventListener("pointermove", (event) => {
    if (!state.kept) set({place: placeUnder(event), token: -1});
  });
  $("picture").addEventListener("click", (event) => set({place: placeUnder(event), token: -1, kept: !state.kept}));
  $("layer").addEventListener("input", () => set({layer: Number($("layer").value)}));
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  new ResizeObserver(() => set({})).observe($("stage"));

  $("title").textContent = data.model;
  $("subtitle").textContent = `What the model sees: ${data.layers.length} blocks, images of ${data.size.join(" x ")}`;
  $("layer").max = data.layers.length - 1;
  data.images.forEach((image, i) => {
    const button = Object.assign(document.createElement("button"), {type: "button", title: image.name});
    button.append(pictures[i].colour, Object.assign(document.createElement("span"), {textContent: image.name}));
    button.onclick = () => set({image: i});
    $("images").append(button);
  });
  drawControls();
  draw();
}

if (typeof document !== "undefined") main();
if (typeof module !== "undefined") {
  module.exports = {
    bytesOf, nearest, patchAt, placeOf, queryOf, rowOf, windowOf, regionOf, fieldOf, headMaps, meanMap, rangeOf,
    heatColour, signedColour, paragraphsOf,
  };
}
