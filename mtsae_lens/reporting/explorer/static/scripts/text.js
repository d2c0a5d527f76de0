// The view of a whole context: which features fire on a token, where a feature fires, and the loss of each token.
(function () {
  "use strict";
  const { html } = htmPreact;
  const { format, tokens, route, data } = MT;
  const STRONG_LOSS = 8; // nats; about chance for a vocabulary of 3,000

  function Picker({ id, index, corpora, query }) {
    const kept = { feature: query.feature, color: query.color };
    const step = (to, text, label) =>
      to >= 0 && to < index.length
        ? html`<a class="button" href=${route.address("text", to, kept)} aria-label=${label}>${text}</a>`
        : html`<span class="button" aria-disabled="true">${text}</span>`;
    return html`<div class="picker"><label><span class="sr">Text</span>
        <select onChange=${(event) => route.go("text", Number(event.target.value), kept)}>
          ${index.map((text, at) => html`<option value=${at} selected=${at === id}>${corpora.length > 1 && corpora[text.corpus] ? format.ending(corpora[text.corpus].name) + ": " : ""}${format.token(text.start)}</option>`)}
        </select></label>${step(id - 1, "\u2190", "Previous text")}${step(id + 1, "\u2192", "Next text")}</div>`;
  }

  const activation = (text, at, feature) => {
    const place = text.features[at].indexOf(feature);
    return place < 0 ? 0 : text.activations[at][place];
  };

  // The feature with the highest activation in a text; null if no feature fires.
  function strongest(text) {
    const best = { feature: null, value: 0 };
    text.features.forEach((features, at) => {
      const value = text.activations[at][0];
      if (features.length && value > best.value) Object.assign(best, { feature: features[0], value });
    });
    return best.feature;
  }

  // The feature that the address names, or else the strongest; null for "none".
  const featureToMark = (text, query) => (query.feature === undefined ? strongest(text) : route.place(query.feature, data.features().length));

  // The facts keep the strongest features of each token. If there are fewer than that, they are all that fire.
  const isComplete = (features) => features.length < data.explore().n_strongest;

  function howMany(features) {
    const n = features.length;
    if (!n) return "no feature fires";
    return n + (isComplete(features) ? "" : " or more") + (n === 1 ? " feature" : " features");
  }

  function howStrongly(text, at, feature) {
    if (feature === null) return "";
    const value = activation(text, at, feature);
    return value ? format.number(value) : isComplete(text.features[at]) ? "does not fire here" : "not among the strongest here";
  }

  function Strongest({ text, at, chosen }) {
    if (at === null) return html`<p class="meaning">Choose a token to list its strongest features here.</p>`;
    const rows = data.features();
    return html`<h2>At <${tokens.Chip} text=${text.tokens[at]} /></h2>
      <p class="meaning">Loss of this token: ${format.number(text.nll[at])}${format.missing(text.nll[at]) ? "" : " nats"}</p>
      ${text.features[at].length === 0 && html`<p class="note">No feature fires here.</p>`}
      <ol class="strongest">
        ${text.features[at].map((feature, n) => html`<li>
          <a href=${route.address("feature", feature)}>${feature}</a><${tokens.Chip} text=${rows[feature] ? rows[feature].top_token : null} kind="quiet" />
          <span class="num">${format.fixed(text.activations[at][n], 2)}</span>
          <button class="small" aria-pressed=${feature === chosen} onClick=${() => route.amend({ feature: feature === chosen ? "none" : feature, color: null })}>highlight</button>
        </li>`)}
      </ol>`;
  }

  function highlight(field) {
    field.value = field.value.replace(/\D/g, "");
    route.amend({ feature: field.value || "none" });
  }

  function Controls({ query, feature }) {
    const loss = query.color === "loss";
    const modes = [["a feature", false, null], ["loss per token", true, "loss"]];
    return html`<div class="toolbar">
      <div role="radiogroup" aria-label="What the color shows" class="switch">
        ${modes.map(([text, on, color]) => html`<button role="radio" aria-checked=${loss === on} onClick=${() => route.amend({ color })}>${text}</button>`)}
      </div>
      ${!loss && html`<label class="inline">Feature <${MT.Field} type="text" inputmode="numeric" size="6" value=${feature === null ? "" : feature} onValue=${highlight} /></label>`}
      ${loss && html`<span class="key"><span class="tok loss" style="--strength: 0.05">0</span><span class="tok loss" style="--strength: 0.5">${STRONG_LOSS / 2}</span><span class="tok loss" style="--strength: 1">${STRONG_LOSS} nats or more</span></span>`}
    </div>`;
  }

  function Marked({ feature, given }) {
    const row = feature === null ? null : data.features()[feature];
    if (!row) return html`<p class="meaning">No feature is marked. Enter a number, or choose a token and highlight one of its features.</p>`;
    const n = data.explore().n_strongest;
    const where = (given ? " is marked" : ", the strongest in this text, is marked") + " wherever it is among the " + n + " strongest features of a token.";
    return html`<p class="meaning">Feature <a href=${route.address("feature", feature)}>${feature}</a> <${tokens.Chip} text=${row.top_token} />${where}</p>`;
  }

  function Body({ text, query, feature }) {
    const loss = query.color === "loss";
    const chosen = route.place(query.token, text.tokens.length);
    const row = feature === null ? null : data.features()[feature];
    const most = Math.max(1e-12, ...text.tokens.map((_, at) => activation(text, at, feature)), (row && row.max_activation) || 0);
    const mark = (at) => {
      const value = loss ? text.nll[at] : activation(text, at, feature);
      const kind = [at === chosen && "peak", value ? (loss ? "loss" : "on") : ""].join(" ");
      const description = value ? (loss ? "loss " : "activation ") + format.number(value) : "";
      return { kind, style: value ? tokens.strength(value / (loss ? STRONG_LOSS : most)) : null, label: description };
    };
    const about = (at) => html`<div class="about"><p><${tokens.Chip} text=${text.tokens[at]} />
        <b>${loss ? format.number(text.nll[at]) + " nats" : howStrongly(text, at, feature)}</b></p>
      <p class="part"><span>${howMany(text.features[at])}</span></p></div>`;
    return html`${!loss && html`<${Marked} feature=${feature} given=${query.feature !== undefined} />`}<${tokens.Tokens} tokens=${text.tokens} mark=${mark} about=${about} start=${chosen || 0} newlines=${true}
      label="The text" onPick=${(at) => route.amend({ token: at })} />`;
  }

  function Text({ id, query }) {
    const explore = data.explore();
    const shard = id < explore.texts.length ? Math.floor(id / explore.texts_per_shard) : null;
    const { content, error } = data.useShard("texts", shard);
    if (!explore.texts.length) return html`<p class="note">These facts hold no texts.</p>`;
    if (id >= explore.texts.length) return html`<p class="note">There is no text ${id}: there are the texts 0 to ${explore.texts.length - 1}.</p>`;
    if (error) return html`<p class="note" role="alert">${error}</p>`;
    const text = content && content[id % explore.texts_per_shard];
    const feature = text ? featureToMark(text, query) : null;
    return html`<article class="text"><header class="title"><h1>Text</h1><${Picker} id=${id} index=${explore.texts} corpora=${explore.corpora} query=${query} /></header>
      <${Controls} query=${query} feature=${feature} />
      ${!text && html`<p class="note" role="status">Loading</p>`}
      ${text && html`<div class="columns"><section aria-label="Tokens"><${Body} key=${id} text=${text} query=${query} feature=${feature} /></section>
        <aside aria-label="Features of the chosen token" aria-live="polite"><${Strongest} text=${text} at=${route.place(query.token, text.tokens.length)} chosen=${feature} /></aside></div>`}
    </article>`;
  }

  MT.Text = Text;
})();
