/** What every part of the page does to its document. */

export const $ = (id) => document.getElementById(id);

// This is called sixty times a second, but mostly with the same text: the browser is spared what has not changed.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let toastTimer;
/** Show a message for five seconds. */
export function say(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 5000);
}

/** Show one of the page's <main> elements and hide the others. */
export function show(id) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== id;
}
