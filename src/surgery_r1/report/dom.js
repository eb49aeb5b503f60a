"use strict";
// What both pages build their parts from. Text from models only ever becomes text nodes.
const SVG = "http://www.w3.org/2000/svg";

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

const shape = (parent, tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
};

const rect = (svg, className, [x1, y1, x2, y2]) =>
  shape(svg, "rect", { class: className, x: x1, y: y1, width: x2 - x1, height: y2 - y1 });

// .83, as tables print it.
const rate = (value, digits = 3) => value.toFixed(digits).replace(/^(-?)0\./, "$1.");

// Buttons of which one is pressed.
const choice = (parent, title, key, options, current, choose) => {
  const set = element("div", "set");
  set.setAttribute("role", "group");
  set.setAttribute("aria-label", title);
  set.append(element("span", "", title));
  for (const [value, label] of options) {
    const button = element("button", "", label);
    button.type = "button";
    button.dataset.key = key;
    button.dataset.value = String(value);
    button.setAttribute("aria-pressed", String(current === value));
    button.addEventListener("click", () => choose(value));
    set.append(button);
  }
  parent.append(set);
  return set;
};
