// Elements of the document. Texts become text nodes, never HTML, so that labels, file names and messages cannot bring elements.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

// Show the options of a <select>; keep the chosen one if it is still among them.
export function fillSelect(select, options, chosen) {
  const wanted = chosen ?? select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => value === wanted)) select.value = wanted;
}
