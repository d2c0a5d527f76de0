// An input whose value is part of the address. The address lags behind while someone types, so a focused field is not overwritten.
(function () {
  "use strict";
  const { html, useLayoutEffect, useRef } = htmPreact;

  function Field({ value, onValue, ...attributes }) {
    const field = useRef(null);
    useLayoutEffect(() => {
      if (document.activeElement !== field.current) field.current.value = value;
    });
    return html`<input ref=${field} autocomplete="off" onInput=${(event) => onValue(event.target)} ...${attributes} />`;
  }

  MT.Field = Field;
})();
