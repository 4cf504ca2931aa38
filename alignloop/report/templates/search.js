"use strict";
(() => {
  const form = document.querySelector("form.search");
  if (!form) return;
  const words = form.querySelector("input[type=search]");
  const changed = form.querySelector("input[name=changed]");
  const said = form.querySelector("output");
  const dialogs = [...document.querySelectorAll("details.dialog")];
  const texts = dialogs.map((dialog) => dialog.textContent.toLowerCase());
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    dialogs.forEach((dialog, index) => {
      const found = wanted.every((word) => texts[index].includes(word)) &&
        (!changed.checked || dialog.hasAttribute("data-changed"));
      dialog.hidden = !found;
      count += found;
    });
    said.textContent = `${count} of ${dialogs.length} prompts`;
  };
  if (!dialogs.some((dialog) => dialog.hasAttribute("data-changed"))) changed.parentElement.hidden = true;
  form.addEventListener("submit", (event) => event.preventDefault());
  words.addEventListener("input", show);
  changed.addEventListener("change", show);
  form.hidden = false;
  show();
})();
