// Whole contexts: which features fire on a token, where a feature fires, and how surprised the model was.
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
          ${index.map((text, at) => html`<option value=${at} selected=${at === id}>${corpora[text.corpus] ? corpora[text.corpus].name : ""}: ${format.token(text.start)}</option>`)}
        </select></label>${step(id - 1, "\u2190", "Previous text")}${step(id + 1, "\u2192", "Next text")}</div>`;
  }

  const activation = (text, at, feature) => {
    const place = text.features[at].indexOf(feature);
    return place < 0 ? 0 : text.activations[at][place];
  };

  function Strongest({ text, at, query }) {
    if (at === null) return html`<p class="meaning">Choose a token: its strongest features are listed here.</p>`;
    const rows = data.features();
    return html`<h2>At <${tokens.Chip} text=${text.tokens[at]} /></h2>
      <p class="meaning">Loss of this token: ${format.number(text.nll[at])}${format.missing(text.nll[at]) ? "" : " nats"}</p>
      ${text.features[at].length === 0 && html`<p class="note">No feature fires here.</p>`}
      <ol class="strongest">
        ${text.features[at].map((feature, n) => html`<li>
          <a href=${route.address("feature", feature)}>${feature}</a><${tokens.Chip} text=${rows[feature] ? rows[feature].top_token : null} kind="quiet" />
          <span class="num">${format.fixed(text.activations[at][n], 2)}</span>
          <button class="small" aria-pressed=${String(feature) === query.feature} onClick=${() => route.amend({ feature: String(feature) === query.feature ? null : feature, color: null })}>highlight</button>
        </li>`)}
      </ol>`;
  }

  function highlight(field) {
    field.value = field.value.replace(/\D/g, "");
    route.amend({ feature: field.value });
  }

  function Controls({ query }) {
    const loss = query.color === "loss";
    const modes = [["a feature", false, null], ["loss per token", true, "loss"]];
    return html`<div class="toolbar">
      <div role="radiogroup" aria-label="What the colour shows" class="switch">
        ${modes.map(([text, on, color]) => html`<button role="radio" aria-checked=${loss === on} onClick=${() => route.amend({ color })}>${text}</button>`)}
      </div>
      ${!loss && html`<label class="inline">Feature <${MT.Field} type="text" inputmode="numeric" size="6" value=${query.feature || ""} onValue=${highlight} /></label>`}
      ${loss && html`<span class="key"><span class="tok loss" style="--strength: 0.05">0</span><span class="tok loss" style="--strength: 0.5">${STRONG_LOSS / 2}</span><span class="tok loss" style="--strength: 1">${STRONG_LOSS} nats or more</span></span>`}
    </div>`;
  }

  function Body({ text, query }) {
    const loss = query.color === "loss";
    const feature = route.place(query.feature, data.features().length);
    const chosen = route.place(query.token, text.tokens.length);
    const row = feature === null ? null : data.features()[feature];
    const most = Math.max(1e-12, ...text.tokens.map((_, at) => activation(text, at, feature)), (row && row.max_activation) || 0);
    const mark = (at) => {
      const value = loss ? text.nll[at] : activation(text, at, feature);
      const kind = [at === chosen && "peak", value ? (loss ? "loss" : "on") : ""].join(" ");
      const said = value ? (loss ? "loss " : "activation ") + format.number(value) : "";
      return { kind, style: value ? tokens.strength(value / (loss ? STRONG_LOSS : most)) : null, label: said };
    };
    const about = (at) => html`<div class="about"><p><${tokens.Chip} text=${text.tokens[at]} />
      <b>${loss ? format.number(text.nll[at]) + " nats" : feature === null ? text.features[at].length + " features or more" : format.number(activation(text, at, feature))}</b></p></div>`;
    return html`<${tokens.Tokens} tokens=${text.tokens} mark=${mark} about=${about} start=${chosen || 0} newlines=${true}
      label="The text" onPick=${(at) => route.amend({ token: at })} />
      ${!loss && row && html`<p class="meaning">Feature <a href=${route.address("feature", feature)}>${feature}</a> is marked where it is among the strongest of a token.</p>`}`;
  }

  function Text({ id, query }) {
    const explore = data.explore();
    const shard = id < explore.texts.length ? Math.floor(id / explore.texts_per_shard) : null;
    const { content, error } = data.useShard("texts", shard);
    if (!explore.texts.length) return html`<p class="note">No texts were kept.</p>`;
    if (id >= explore.texts.length) return html`<p class="note">There is no text ${id}: there are ${explore.texts.length}.</p>`;
    if (error) return html`<p class="note" role="alert">${error}</p>`;
    const text = content && content[id % explore.texts_per_shard];
    return html`<article class="text"><header class="title"><h1>Text</h1><${Picker} id=${id} index=${explore.texts} corpora=${explore.corpora} query=${query} /></header>
      <${Controls} query=${query} />
      ${!text && html`<p class="note" role="status">Loading</p>`}
      ${text && html`<div class="columns"><section aria-label="Tokens"><${Body} key=${id} text=${text} query=${query} /></section>
        <aside aria-label="Features of the chosen token" aria-live="polite"><${Strongest} text=${text} at=${route.place(query.token, text.tokens.length)} query=${query} /></aside></div>`}
    </article>`;
  }

  MT.Text = Text;
})();
