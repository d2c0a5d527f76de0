// The text box of FeatureProbe: Python computes, and this script shows the results. Text is only ever set as textContent.
function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function bars(title, rows) {
  const box = element("div", "mtsae-bars");
  box.append(element("strong", "", title));
  const largest = Math.max(...rows.map((row) => Math.abs(row[1])), 1e-9);
  for (const [name, value] of rows) {
    const line = element("div", "mtsae-bar");
    const fill = element("span", value < 0 ? "mtsae-fill mtsae-down" : "mtsae-fill");
    fill.style.width = `${(60 * Math.abs(value)) / largest}%`;
    line.append(element("span", "mtsae-name", String(name)), fill, element("span", "", (value < 0 ? "" : "+") + value.toFixed(2)));
    box.append(line);
  }
  return box;
}

function render({ model, el }) {
  const root = element("div", "mtsae-probe");
  const text = element("textarea");
  text.rows = 2;
  text.setAttribute("aria-label", "text");
  text.placeholder = "Type a text";
  const feature = element("input");
  feature.type = "number";
  feature.min = -1;
  feature.setAttribute("aria-label", "feature, -1 for the strongest at each token");
  const error = element("div", "mtsae-error");
  error.setAttribute("role", "alert");
  const tokens = element("div", "mtsae-tokens");
  const strongest = element("div", "mtsae-strongest");
  const drivers = element("div", "mtsae-drivers");
  const label = element("label", "", "feature (-1: strongest) ");
  label.append(feature);
  root.append(text, label, error, tokens, strongest, drivers);
  el.append(root);

  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  let waiting;
  text.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => set("text", text.value), 300); });
  feature.addEventListener("change", () => set("feature", feature.value === "" ? -1 : Math.trunc(Number(feature.value))));

  function draw() {
    if (document.activeElement !== text) text.value = model.get("text");
    feature.value = model.get("feature");
    error.textContent = model.get("error");
    const acts = model.get("activations"), largest = Math.max(...acts, 1e-9);
    tokens.replaceChildren(...model.get("tokens").map((token, place) => {
      const shown = element("button", place === model.get("position") ? "mtsae-token mtsae-clicked" : "mtsae-token", token.replaceAll("\n", "\u21b5"));
      shown.type = "button";
      shown.style.setProperty("--strength", `${(80 * Math.max(acts[place] || 0, 0)) / largest}%`);
      shown.title = (acts[place] || 0).toFixed(3);
      shown.addEventListener("click", () => set("position", place));
      return shown;
    }));
    strongest.replaceChildren(...model.get("strongest").map(([number, value, name]) => {
      const chip = element("button", "mtsae-chip", `${number}${name ? ` \u201c${name}\u201d` : ""} ${value.toFixed(2)}`);
      chip.type = "button";
      chip.addEventListener("click", () => set("feature", number));
      return chip;
    }));
    const found = model.get("contributions");
    drivers.replaceChildren();
    if (found.hidden_pre === undefined) return;
    const bias = found.bias === null ? "" : `, bias ${found.bias.toFixed(2)}`;
    drivers.append(element("div", "", `feature ${found.feature}: pre-activation ${found.hidden_pre.toFixed(2)}${bias}`));
    if (found.scales.length) drivers.append(bars("by scale", found.scales), bars("by offset", found.offsets));
    else drivers.append(element("div", "", "this SAE reads one position, so it has no time scales and reads no earlier tokens"));
  }
  for (const name of ["text", "feature", "position", "tokens", "activations", "strongest", "contributions", "error"]) model.on(`change:${name}`, draw);
  draw();
}

export default { render };
