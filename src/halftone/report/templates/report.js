"use strict";
const tiles = Array.from(document.querySelectorAll(".swap"));
const show = (tile, on) => { tile.classList.toggle("on", on); tile.setAttribute("aria-pressed", String(on)); };
for (const tile of tiles) {
  const original = tile.closest(".row").querySelector("img").cloneNode();
  original.alt = "";
  tile.querySelector("img").after(original);
  // A mouse swaps by pointing; a finger or the keyboard by pressing.
  tile.addEventListener("click", (event) => { if (event.pointerType !== "mouse") show(tile, !tile.classList.contains("on")); });
}

let timer = 0;
const flicker = document.getElementById("flicker");
flicker.addEventListener("click", () => {
  const stop = timer !== 0;
  clearInterval(timer);
  let on = false;
  timer = stop ? 0 : setInterval(() => { on = !on; for (const tile of tiles) show(tile, on); }, 600);
  if (stop) for (const tile of tiles) show(tile, false);
  flicker.setAttribute("aria-pressed", String(!stop));
  flicker.textContent = stop ? "Flicker all" : "Stop";
});

const wipe = document.querySelector(".wipe");
const range = wipe.querySelector("input");
range.addEventListener("input", () => wipe.style.setProperty("--at", range.value + "%"));
