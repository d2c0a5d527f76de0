// What a feature knows of time: which scales and which earlier tokens lift it, and how long it stays.
(function () {
  "use strict";
  const { html } = htmPreact;
  const { format, meanings, titles, charts } = MT;

  function Panel({ title, meaning, children }) {
    return html`<section class="panel"><h3 title=${meaning}>${title}</h3><p class="meaning">${meaning}</p>${children}</section>`;
  }

  const shareRows = (values, names) =>
    values.map((value, at) => ({ name: names[at], value, shown: format.share(value), main: value === Math.max(...values) }));

  const full = (values) => Math.max(1, charts.largest(values)); // a bar of the whole lift
  const below = (values) => values.some((value) => value < -0.005);

  function Scales({ facts, explore }) {
    const rows = shareRows(facts.scale_shares, explore.dilations.map(format.dilation));
    return html`<${Panel} title=${titles.scale_shares} meaning=${meanings.scale_shares}>
      <${charts.BarTable} caption="Share of the lift by time scale" rows=${rows} most=${full(facts.scale_shares)} diverging=${below(facts.scale_shares)} /></${Panel}>`;
  }

  function Kernel({ facts, explore }) {
    const names = explore.offsets.map((offset) => (offset === 0 ? "this token" : format.offset(offset)));
    return html`<${Panel} title=${titles.kernel} meaning=${meanings.kernel}>
      <${charts.BarTable} caption="Share of the lift by token read" rows=${shareRows(facts.kernel, names)} most=${full(facts.kernel)} diverging=${below(facts.kernel)} />
    </${Panel}>`;
  }

  function Persistence({ facts, explore }) {
    const lags = explore.persistence_lags;
    const said = lags.map((lag, at) => "after " + lag + ": " + format.percent(facts.persistence[at])).join(", ");
    return html`<${Panel} title=${titles.persistence} meaning=${meanings.persistence}>
      <${charts.Curve} x=${lags} y=${facts.persistence} xLabel="tokens later" label=${"Persistence. " + said} />
      <p class="meaning" title=${meanings.mean_run_length}>Mean run: <b>${format.number(facts.mean_run_length)}</b> tokens</p></${Panel}>`;
  }

  const filled = (values) => values && values.length > 0 && values.some((value) => !format.missing(value));

  function Time({ facts, explore }) {
    const pointwise = explore.dilations.length === 0;
    const stays = filled(facts.persistence);
    return html`<section class="time" id="time" aria-labelledby="time-title"><h2 id="time-title">Time</h2>
      ${pointwise && html`<p class="note">This SAE reads one position: no scales and no earlier tokens to tell apart.</p>`}
      ${!pointwise && !filled(facts.scale_shares) && html`<p class="note">It never fired, so nothing is known of its time scales.</p>`}
      <div class="panels">
        ${filled(facts.scale_shares) && html`<${Scales} facts=${facts} explore=${explore} />`}
        ${!pointwise && filled(facts.kernel) && html`<${Kernel} facts=${facts} explore=${explore} />`}
        ${stays && html`<${Persistence} facts=${facts} explore=${explore} />`}
      </div></section>`;
  }

  MT.Time = Time;
})();
