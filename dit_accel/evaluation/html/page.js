// Switches: which plot is shown, which columns.
"use strict";
document.documentElement.classList.add("js");

for (const group of new Set([...document.querySelectorAll(".panel")].map((p) => p.dataset.group))) {
  const inputs = [...document.querySelectorAll(`.choice[data-group="${group}"] input`)];
  const panels = [...document.querySelectorAll(`.panel[data-group="${group}"]`)];
  const chosen = (name) => inputs.find((i) => i.name === `${group}-${name}` && i.checked)?.value;
  const show = () => {
    for (const panel of panels) {
      const { x, y } = panel.dataset;
      panel.hidden = y !== chosen("y") || (x !== undefined && x !== chosen("x"));
    }
  };
  for (const input of inputs) input.addEventListener("change", show);
  show();
}

document.getElementById("all-metrics")?.addEventListener("change", (event) => {
  document.querySelector(".results").classList.toggle("all", event.target.checked);
});
