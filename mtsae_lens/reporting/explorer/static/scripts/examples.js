// The examples of a feature: where it fires, how strongly, and what the encoder read at the peak.
(function () {
  "use strict";
  const { html, useEffect, useRef } = htmPreact;
  const { format, meanings, charts, tokens, route } = MT;

  // Returns what each token of the window added to the pre-activation at the peak, as a map from its place.
  function parts(example, explore, mode) {
    const found = new Map();
    if (mode === "model") example.model_attribution.forEach((value, at) => value && found.set(at, value));
    if (mode === "taps" && explore.dilations.length) {
      explore.offsets.forEach((offset, n) => found.set(example.peak + offset, example.offset_contributions[n] || 0));
    }
    return found;
  }

  const direction = (value) => (value < 0 ? "held back" : "pushed up");

  function ScaleTable({ values, dilations, most }) {
    const rows = values.map((value, at) => ({ name: format.dilation(dilations[at]), value, shown: format.signed(value) }));
    return html`<${charts.BarTable} caption="Contribution of each time scale" rows=${rows} most=${most} diverging=${true} />`;
  }

  function About({ example, explore, at, part, mode }) {
    const fired = example.fired.indexOf(at);
    const scales = fired >= 0 ? example.token_scales[fired] : null;
    const offset = at - example.peak;
    return html`<div class="about"><p><${tokens.Chip} text=${example.tokens[at]} />
        <b data-role="activation">${fired < 0 ? "does not fire here" : format.fixed(example.activations[fired])}</b></p>
      ${scales && html`<${ScaleTable} values=${scales} dilations=${explore.dilations} most=${charts.largest([example.activations[fired], ...scales])} />`}
      ${part !== undefined && html`<p class=${"part " + (part < 0 ? "down" : "up")}>${format.signed(part)} ${direction(part)}
        <span> the peak${offset ? ", " + format.offset(offset) + (offset === -1 ? " token" : " tokens") : ""}${mode === "model" ? ", through the model" : ""}</span></p>`}
    </div>`;
  }

  function Text({ example, explore, most, mode, newlines, label }) {
    const known = parts(example, explore, mode);
    const largest = Math.max(1e-12, ...[...known].map(([, value]) => Math.abs(value)));
    const mark = (at) => {
      const fired = example.fired.indexOf(at);
      const part = known.get(at);
      const style = fired >= 0 ? tokens.strength(example.activations[fired] / most) : {};
      if (part !== undefined) style["--part"] = Math.round(Math.sqrt(Math.abs(part) / largest) * 100) / 100;
      const kind = [fired >= 0 && "on", at === example.peak && "peak", part !== undefined && (part < 0 ? "down" : "up")].filter(Boolean).join(" ");
      const labels = [fired >= 0 && "activation " + format.fixed(example.activations[fired]), part !== undefined && direction(part) + " " + format.signed(part)];
      return { kind, style, label: labels.filter(Boolean).join(", ") };
    };
    const about = (at) => html`<${About} example=${example} explore=${explore} at=${at} part=${known.get(at)} mode=${mode} />`;
    return html`<${tokens.Tokens} tokens=${example.tokens} mark=${mark} about=${about} label=${label} start=${example.peak} newlines=${newlines} />`;
  }

  function sumFoot(values, example) {
    const sum = values.reduce((total, value) => total + (value || 0), 0) + (example.bias || 0);
    return [["bias", format.signed(example.bias)], ["sum", format.fixed(sum)], ["pre-activation", format.fixed(example.hidden_pre)]];
  }

  // The exact decomposition of the peak: the parts and the bias sum to the pre-activation.
  function Decomposition({ example, explore }) {
    if (!explore.dilations.length) return html`<p class="note">This SAE reads one position: the whole pre-activation (${format.fixed(example.hidden_pre)}) comes from the token itself.</p>`;
    const scales = example.scale_contributions || [];
    const offsets = example.offset_contributions || [];
    const scaleRows = scales.map((value, at) => ({ name: format.dilation(explore.dilations[at]), value, shown: format.signed(value) }));
    const offsetRows = offsets.map((value, n) => {
      const offset = explore.offsets[n];
      const text = example.tokens[example.peak + offset];
      const token = text === undefined ? html`<i>${example.position + offset < 0 ? "before the text" : "outside the window"}</i>` : html`<${tokens.Chip} text=${text} />`;
      return { name: html`<span class="back">${format.offset(offset)}</span> ${token}`, value, shown: format.signed(value) };
    });
    const foot = (values) => sumFoot(values, example);
    const most = charts.largest([example.hidden_pre, ...scales, ...offsets]);
    return html`<div class="account">
      <div><h4>By time scale</h4><${charts.BarTable} caption="Pre-activation by time scale" rows=${scaleRows} most=${most} diverging=${true} foot=${foot(scales)} /></div>
      <div><h4>By token</h4><${charts.BarTable} caption="Pre-activation by token" rows=${offsetRows} most=${most} diverging=${true} foot=${foot(offsets)} /></div>
      <p class="meaning">Bars reach from ${format.fixed(-most, 2)} to ${format.signed(most, 2)}.</p>
    </div>`;
  }

  // The document of an example. With several corpora, a document that does not begin with its corpus's name gets it in front. A path is
  // shortened to its last part.
  function Source({ example, corpora }) {
    const { name = "" } = corpora[example.corpus] || {};
    const inside = example.document.startsWith(name) ? format.ending(name) + example.document.slice(name.length) : example.document;
    const shown = corpora.length === 1 || example.document.startsWith(name) ? inside : format.ending(name) + " " + inside;
    return html`<span class="source" title=${example.document}><span class="document">${format.token(shown)}</span><span>, token ${example.position}</span></span>`;
  }

  function Example({ example, name, open, linked, ...shared }) {
    const place = useRef(null);
    useEffect(() => {
      if (linked) place.current.scrollIntoView({ block: "center" });
    }, [linked]);
    const value = example.fired.includes(example.peak) ? example.activations[example.fired.indexOf(example.peak)] : null;
    const label = "Example " + name + ", activation " + format.number(value);
    return html`<li class="example ${open ? "open" : ""}" ref=${place} id=${"example-" + name}>
      <div class="head">
        <button class="toggle" aria-expanded=${open} aria-label=${(open ? "Hide" : "Show") + " the decomposition of example " + name}
          onClick=${() => route.amend({ example: open ? "none" : name })}><span aria-hidden="true">${open ? "\u25be" : "\u25b8"}</span> ${format.fixed(value, 2)}</button>
        <span class="where" title=${meanings.quantile}>${format.quantile(example.quantile)}</span>
        <${Source} example=${example} corpora=${shared.explore.corpora} />
      </div>
      <${Text} example=${example} label=${label} ...${shared} />
      ${open && html`<${Decomposition} example=${example} explore=${shared.explore} />`}
    </li>`;
  }

  const MODES = [["taps", "encoder taps", meanings.taps], ["model", "through the model", meanings.model]];

  function Toolbar({ mode, newlines, pointwise, traced }) {
    return html`<div class="toolbar">
      <div role="radiogroup" aria-label="What the underlines show" class="switch">
        ${MODES.map(([value, text, title]) => html`<button role="radio" aria-checked=${mode === value} title=${title}
          disabled=${value === "taps" ? pointwise : !traced} onClick=${() => route.amend({ why: value === "taps" ? null : value })}>${text}</button>`)}
      </div>
      <span class="key"><span class="tok up" style="--part: 1">pushed up</span> <span class="tok down" style="--part: 1">held back</span></span>
      <label class="check"><input type="checkbox" checked=${newlines} onChange=${(event) => route.amend({ lines: event.target.checked ? 1 : null })} /> line breaks</label>
    </div>`;
  }

  function Examples({ examples, facts, explore, query }) {
    const traced = examples.some((example) => example.model_attribution.length > 0);
    const pointwise = explore.dilations.length === 0;
    const mode = (query.why === "model" || pointwise) && traced ? "model" : "taps";
    const shared = { explore, mode, newlines: query.lines === "1", most: facts.max_activation || 1 };
    const group = (kind, prefix) => examples.filter((example) => example.kind === kind).map((example, at) => ({ example, name: prefix + (at + 1) }));
    const groups = [["Top activations", group("top", "")], ["Sampled uniformly from all firings", group("sampled", "s")]];
    const opened = query.example || "1";
    return html`<section class="examples" id="examples" aria-labelledby="examples-title">
      <header><h2 id="examples-title">Examples</h2><${Toolbar} mode=${mode} newlines=${shared.newlines} pointwise=${pointwise} traced=${traced} /></header>
      ${mode === "model" && html`<p class="meaning">${meanings.model}${examples.some((e) => !e.model_attribution.length) ? " It is computed for the first examples only." : ""}</p>`}
      ${examples.length === 0 && html`<p class="note">It never fired on these texts.</p>`}
      ${groups.map(([title, members]) => members.length > 0 && html`<h3>${title}</h3><ol>
        ${members.map(({ example, name }) => html`<${Example} key=${name} example=${example} name=${name} open=${opened === name} linked=${query.example === name} ...${shared} />`)}
      </ol>`)}
    </section>`;
  }

  MT.Examples = Examples;
})();
