// A feature in time: the share of each time scale and each token read, how long the feature stays on, and how long
// the memory of a decoder carries it.
(function () {
  "use strict";
  const { html } = htmPreact;
  const { format, meanings, titles, charts } = MT;

  function Panel({ title, meaning, children }) {
    return html`<section class="panel"><h3 title=${meaning}>${title}</h3><p class="meaning">${meaning}</p>${children}</section>`;
  }

  const shareRows = (values, names) =>
    values.map((value, at) => ({ name: names[at], value, shown: format.share(value), main: value === Math.max(...values) }));

  const full = (values) => Math.max(1, charts.largest(values)); // a full bar is the whole lift
  const hasNegative = (values) => values.some((value) => value < -0.005);

  function Scales({ facts, explore }) {
    const rows = shareRows(facts.scale_shares, explore.dilations.map(format.dilation));
    return html`<${Panel} title=${titles.scale_shares} meaning=${meanings.scale_shares}>
      <${charts.BarTable} caption="Share of the lift by time scale" rows=${rows} most=${full(facts.scale_shares)} diverging=${hasNegative(facts.scale_shares)} /></${Panel}>`;
  }

  function Kernel({ facts, explore }) {
    const names = explore.offsets.map((offset) => (offset === 0 ? "this token" : format.offset(offset)));
    return html`<${Panel} title=${titles.kernel} meaning=${meanings.kernel}>
      <${charts.BarTable} caption="Share of the lift by token read" rows=${shareRows(facts.kernel, names)} most=${full(facts.kernel)} diverging=${hasNegative(facts.kernel)} />
    </${Panel}>`;
  }

  function Persistence({ facts, explore }) {
    const lags = explore.persistence_lags;
    const description = lags.map((lag, at) => "after " + lag + ": " + format.percent(facts.persistence[at])).join(", ");
    return html`<${Panel} title=${titles.persistence} meaning=${meanings.persistence}>
      <${charts.Curve} x=${lags} y=${facts.persistence} xLabel="tokens later" label=${"Persistence. " + description} />
      <p class="meaning" title=${meanings.mean_run_length}>Mean run: <b>${format.number(facts.mean_run_length)}</b> tokens</p></${Panel}>`;
  }

  function Impulse({ facts, explore }) {
    const lags = explore.impulse_lags;
    const description = lags.map((lag, at) => "after " + lag + ": " + format.percent(facts.impulse_response[at])).join(", ");
    return html`<${Panel} title=${titles.impulse_response} meaning=${meanings.impulse_response}>
      <${charts.Curve} x=${lags} y=${facts.impulse_response} xLabel="tokens later" label=${"Impulse response. " + description} />
      ${!format.missing(explore.carried_variance) &&
      html`<p class="meaning">All features together: <b>${format.percent(explore.carried_variance)}</b> of the variance of an output is carried over.</p>`}</${Panel}>`;
  }

  const isKnown = (values) => values && values.length > 0 && values.some((value) => !format.missing(value));

  function Time({ facts, explore }) {
    const pointwise = explore.dilations.length === 0;
    const stays = isKnown(facts.persistence);
    return html`<section class="time" id="time" aria-labelledby="time-title"><h2 id="time-title">Time</h2>
      ${pointwise && html`<p class="note">This SAE reads one position, so it has no time scales and reads no earlier tokens.</p>`}
      ${!pointwise && !isKnown(facts.scale_shares) && html`<p class="note">The feature never fired, so its time scales are unknown.</p>`}
      <div class="panels">
        ${isKnown(facts.scale_shares) && html`<${Scales} facts=${facts} explore=${explore} />`}
        ${!pointwise && isKnown(facts.kernel) && html`<${Kernel} facts=${facts} explore=${explore} />`}
        ${stays && html`<${Persistence} facts=${facts} explore=${explore} />`}
        ${isKnown(facts.impulse_response) && html`<${Impulse} facts=${facts} explore=${explore} />`}
      </div></section>`;
  }

  MT.Time = Time;
})();
