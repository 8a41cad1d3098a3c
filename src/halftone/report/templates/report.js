"use strict";
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const PERIOD = still ? 1500 : 600;

// Tiles: pointing swaps with a mouse, pressing with a finger or the keyboard.
const tiles = all(".swap");
const show = (tile, on) => { tile.classList.toggle("on", on); tile.setAttribute("aria-pressed", String(on)); };
for (const tile of tiles) {
  const original = tile.closest(".row").querySelector(".reference").cloneNode();
  original.alt = "";
  const image = tile.querySelector("img");
  const stack = document.createElement("span");
  stack.className = "stack";
  image.before(stack);
  stack.append(image, original);
  tile.addEventListener("click", (event) => { if (event.pointerType !== "mouse") show(tile, !tile.classList.contains("on")); });
}

// Buttons that keep something alternating until they are pressed again.
function alternating(buttons, words, step) {
  let timer = 0;
  const set = (run) => {
    clearInterval(timer);
    let on = false;
    timer = run ? setInterval(() => { on = !on; step(on); }, PERIOD) : 0;
    step(false);
    for (const button of buttons) { button.setAttribute("aria-pressed", String(run)); button.textContent = run ? "Stop" : words; }
  };
  for (const button of buttons) button.addEventListener("click", () => set(timer === 0));
  return () => set(false);
}
alternating(all(".flicker-all"), "Flicker all", (on) => { for (const tile of tiles) show(tile, on); });

for (const button of all(".amplify")) button.addEventListener("click", () => {
  const on = document.body.classList.toggle("amplified");
  button.setAttribute("aria-pressed", String(on));
});

function wipe(figure) {
  const range = figure.querySelector("input");
  const set = (value) => { range.value = value; figure.style.setProperty("--at", value + "%"); };
  range.addEventListener("input", () => figure.style.setProperty("--at", range.value + "%"));
  const stop = alternating(all(".flicker-one", figure.closest("dialog") || figure), "Flicker", (on) => figure.classList.toggle("covered", on));
  range.addEventListener("pointerdown", stop);
  return { set, stop };
}

const hero = document.getElementById("hero-wipe");
if (hero) {
  wipe(hero);
  const under = hero.querySelector(".under"), over = hero.querySelector(".over"), stage = hero.querySelector(".stage");
  const first = { under: under.src, over: over.src };
  const chips = all(".chips button", hero);
  for (const chip of chips) chip.addEventListener("click", () => {
    under.src = chip.dataset.reference || first.under;
    over.src = chip.dataset.image || first.over;
    over.alt = "The same pictures of " + chip.textContent.trim();
    stage.style.aspectRatio = chip.dataset.ratio;
    hero.querySelector(".right").textContent = chip.dataset.name;
    for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
  });
}

const closeup = document.querySelector(".closeup");
if (closeup) {
  const figure = closeup.querySelector(".wipe"), control = wipe(figure);
  const amplify = closeup.querySelector(".amplify-one"), next = closeup.querySelector(".next");
  let shown = [], at = 0;
  const amplified = (on) => { figure.classList.toggle("differs", on); if (amplify) amplify.setAttribute("aria-pressed", String(on)); };
  const draw = () => {
    const image = shown[at].querySelector("img");
    const over = figure.querySelector(".over");
    over.src = image.src;
    over.alt = image.alt;
    figure.querySelector(".right").textContent = shown[at].querySelector(".when-candidate").textContent;
  };
  for (const button of all(".closer")) button.addEventListener("click", () => {
    const pair = button.closest(".pair");
    shown = all(".swap", pair);
    at = 0;
    figure.querySelector(".under").src = pair.querySelector(".reference").src;
    figure.querySelector("figcaption").textContent = pair.querySelector(".prompt").textContent;
    next.hidden = shown.length < 2;
    draw();
    control.set(50);
    amplified(false);
    closeup.showModal();
    figure.querySelector("input").focus();
  });
  next.addEventListener("click", () => { at = (at + 1) % shown.length; draw(); });
  if (amplify) amplify.addEventListener("click", () => amplified(!figure.classList.contains("differs")));
  closeup.querySelector(".close").addEventListener("click", () => closeup.close());
  closeup.addEventListener("click", (event) => { if (event.target === closeup) closeup.close(); });
  closeup.addEventListener("close", () => control.stop());
}
