// The view of one feature: its facts, its time scales, its examples, and related features.
(function () {
  "use strict";
  const { html, useState } = htmPreact;
  const { format, meanings, titles, summary, charts, tokens, route, data } = MT;

  // Columns that this SAE or these corpora do not have are left out.
  function Facts({ facts, explore }) {
    const lacks = { selectivity: explore.corpora.length < 2, main_dilation: !explore.dilations.length, context_share: !explore.dilations.length, carried_over: !(explore.impulse_lags || []).length };
    const shown = summary.filter(([, field]) => !lacks[field]);
    return html`<div class="facts"><dl>
        ${shown.map(([name, field, show]) => html`<div title=${meanings[field]}><dt>${name}</dt><dd data-fact=${field}>${show(facts[field])}</dd></div>`)}
      </dl><button class="small" onClick=${() => MT.help("help-meanings")}>What do these mean?</button></div>`;
  }

  function Card({ title, meaning, id = null, children }) {
    return html`<section class="card" id=${id}><h3 title=${meaning}>${title}</h3>${children}</section>`;
  }

  function Logits({ facts }) {
    const side = (name, words, values) => html`<div><h4>${name}</h4><ul class="logits">
      ${(words || []).map((text, at) => html`<li><${tokens.Chip} text=${text} /><span class="num">${format.signed(values[at], 2)}</span></li>`)}
    </ul></div>`;
    if (!(facts.promoted_tokens || []).length) return null;
    return html`<${Card} title="Logits" id="logits" meaning=${meanings.promoted_tokens}><div class="two">
      ${side("Promoted", facts.promoted_tokens, facts.promoted_logits)}${side("Suppressed", facts.suppressed_tokens, facts.suppressed_logits)}</div></${Card}>`;
  }

  function Activations({ facts, explore }) {
    const counts = facts.histogram || [];
    const total = counts.reduce((sum, value) => sum + value, 0);
    if (!total) return null;
    const label = "Histogram of " + format.count(total) + " activations, up to " + format.number(facts.max_activation) + ", counts on a logarithmic axis";
    return html`<${Card} title=${titles.histogram} meaning=${meanings.histogram}>
      <${charts.Histogram} counts=${counts} edges=${explore.histogram_edges} max=${facts.max_activation} label=${label} />
      <p class="meaning">Fires on ${format.percent(facts.density)} of ${format.count(explore.n_tokens)} tokens. Counts on a logarithmic axis.</p></${Card}>`;
  }

  function Corpora({ facts, explore }) {
    const densities = facts.corpus_density || [];
    if (densities.length < 2) return null;
    const most = charts.largest(densities);
    const decimals = most >= 0.1 ? 1 : most >= 0.01 ? 2 : 3;
    const rows = densities.map((value, at) => ({ name: format.ending(explore.corpora[at].name), value, shown: format.share(value, decimals) }));
    return html`<${Card} title=${titles.corpus_density} meaning=${meanings.corpus_density}><${charts.BarTable} caption="Density by corpus" rows=${rows} most=${most} />
      <p class="meaning">A full bar is the highest density, ${format.share(most, decimals)}.</p></${Card}>`;
  }

  function Related({ title, id = null, meaning, features, scores }) {
    if (!features || !features.length) return null;
    const all = data.features();
    return html`<${Card} title=${title} id=${id} meaning=${meaning}><ul class="related">
      ${features.map((feature, at) => html`<li><a href=${route.address("feature", feature)}>${feature}</a>
        <${tokens.Chip} text=${all[feature] ? all[feature].top_token : null} kind="quiet" /><span class="num">${format.fixed(scores[at], 2)}</span></li>`)}
    </ul></${Card}>`;
  }

  function Ablation({ facts }) {
    if (!facts.n_ablated) return null;
    const most = Math.ceil(Math.max(1, charts.largest([facts.ablation_next_nll, facts.ablation_rest_nll]))); // so that the axis is the same for most features
    const mean = facts.n_ablated === 1 ? "at its strongest example" : "the mean over its " + facts.n_ablated + " strongest examples, which may differ widely";
    const rows = [
      { name: "Next token", value: facts.ablation_next_nll, shown: format.signed(facts.ablation_next_nll) },
      { name: "Rest", value: facts.ablation_rest_nll, shown: format.signed(facts.ablation_rest_nll) },
    ];
    return html`<${Card} title="Effect of setting it to zero" meaning=${meanings.ablation_next_nll}>
      <${charts.BarTable} caption="Change of loss when ablated, in nats" rows=${rows} most=${most} diverging=${true} />
      <p class="meaning">Change of the loss in nats, ${mean}. Positive: the feature helped. Bars reach from ${format.plain(-most)} to +${most} nats.</p></${Card}>`;
  }

  function copyLink(done) {
    const text = location.href;
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => window.prompt("The link", text));
    else window.prompt("The link", text);
  }

  function Header({ id, n, facts, query }) {
    const kept = { why: query.why, lines: query.lines };
    const [message, setMessage] = useState("");
    const copy = () => copyLink(() => (setMessage("Copied"), setTimeout(() => setMessage(""), 1500)));
    const step = (to, text, label, rel) =>
      to >= 0 && to < n
        ? html`<a class="button" rel=${rel} href=${route.address("feature", to, kept)} aria-label=${label}>${text}</a>`
        : html`<span class="button" aria-disabled="true">${text}</span>`;
    return html`<header class="title">
      <h1>Feature ${id} ${facts && html`<${tokens.Chip} text=${facts.top_token} />`}</h1>
      <div class="actions">${step(id - 1, "\u2190", "Previous feature", "prev")}${step(id + 1, "\u2192", "Next feature", "next")}
        <button class="button" onClick=${copy}>Copy link</button><span class="said" role="status">${message}</span></div>
    </header>`;
  }

  // In a single column, the long examples come first, so these buttons lead to what follows them.
  function Jumps({ facts }) {
    const jump = (id) => () => document.getElementById(id).scrollIntoView({ block: "start" });
    const places = [
      ["time", "Time"],
      (facts.promoted_tokens || []).length > 0 && ["logits", "Logits"],
      (facts.neighbours || []).length > 0 && ["related", "Related"],
    ].filter(Boolean);
    return html`<nav class="jumps" aria-label="Further down">Further down:
      ${places.map(([id, text]) => html`<button class="small" onClick=${jump(id)}>${text}</button>`)}</nav>`;
  }

  function Feature({ id, query }) {
    const explore = data.explore();
    const n = data.features().length;
    const shard = id < n ? Math.floor(id / explore.features_per_shard) : null;
    const place = id % explore.features_per_shard;
    const facts = data.useShard("features", shard);
    const examples = data.useShard("examples", shard);
    if (id >= n) return html`<p class="note">There is no feature ${id}: this SAE has the features 0 to ${n - 1}.</p>`;
    const error = facts.error || examples.error;
    if (error) return html`<p class="note" role="alert">${error}</p>`;
    const known = facts.content && facts.content[place];
    if (!known || !examples.content) return html`<${Header} id=${id} n=${n} query=${query} /><p class="note" role="status">Loading</p>`;
    return html`<article class="feature" key=${id}>
      <${Header} id=${id} n=${n} facts=${known} query=${query} />
      <${Facts} facts=${known} explore=${explore} />
      <${Jumps} facts=${known} />
      <div class="columns">
        <${MT.Examples} examples=${examples.content[place]} facts=${known} explore=${explore} query=${query} />
        <aside aria-label="More about this feature">
          <${MT.Time} facts=${known} explore=${explore} />
          <${Logits} facts=${known} />
          <${Activations} facts=${known} explore=${explore} />
          <${Corpora} facts=${known} explore=${explore} />
          <${Ablation} facts=${known} />
          <${Related} title=${titles.neighbours} id="related" meaning=${meanings.neighbours} features=${known.neighbours} scores=${known.neighbour_cosines} />
          <${Related} title=${titles.cofiring} meaning=${meanings.cofiring} features=${known.cofiring} scores=${known.cofiring_scores} />
        </aside>
      </div>
    </article>`;
  }

  MT.Feature = Feature;
})();
