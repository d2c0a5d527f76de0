// The tokens of a text. They share one tab stop, and arrow keys move between them. Pointer, focus or a tap shows a token's tooltip.
(function () {
  "use strict";
  const { html, useRef, useState } = htmPreact;
  const { format, tip } = MT;

  // `mark(place)` returns {kind, style, label}; `about(place)` returns the content of the tooltip, or null.
  function Tokens({ tokens, mark, about, label, start = 0, onPick = null, newlines = false }) {
    const group = useRef(null);
    const [stop, setStop] = useState(start);
    const place = (event) => {
      const token = event.target.closest("[data-place]");
      return token ? Number(token.dataset.place) : null;
    };
    const showTip = (event) => {
      const at = place(event);
      if (at === null) return;
      const content = about(at);
      if (content) tip.show(event.target.closest("[data-place]"), content);
    };
    const focus = (at) => {
      if (at < 0 || at >= tokens.length) return;
      setStop(at);
      group.current.querySelector('[data-place="' + at + '"]').focus();
    };
    const press = (event) => {
      const at = place(event);
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
      if (event.key in moves) focus(moves[event.key]);
      else if ((event.key === "Enter" || event.key === " ") && onPick) onPick(at);
      else if (event.key === "Escape") tip.hide();
      else return;
      event.preventDefault();
      event.stopPropagation();
    };
    const click = (event) => {
      const at = place(event);
      if (at === null) return;
      focus(at);
      showTip(event);
      if (onPick) onPick(at);
    };
    const events = { onMouseOver: showTip, onMouseLeave: tip.hide, onfocusin: showTip, onfocusout: tip.hide, onKeyDown: press, onClick: click };
    return html`<p class="tokens" role="group" aria-label=${label} ref=${group} ...${events}>
      ${tokens.map((text, at) => {
        const { kind = "", style = null, label: description = "" } = mark(at);
        const end = newlines && format.breaks(text) ? html`<br />` : null;
        return html`<span class="tok ${kind}" style=${style} data-place=${at} role="button" tabindex=${at === stop ? 0 : -1}
            aria-label=${(text.trim() || "white space") + (description ? ", " + description : "")}>${format.token(text)}</span>${end}`;
      })}
    </p>`;
  }

  // A single token, in a list or a sentence.
  const Chip = ({ text, kind = "" }) => html`<span class="chip ${kind}">${format.chip(text)}</span>`;

  // The CSS variable for the strength of a color, from a share between 0 and 1.
  const strength = (share) => ({ "--strength": Math.round(Math.max(0, Math.min(1, share)) * 100) / 100 });

  MT.tokens = { Tokens, Chip, strength };
})();
