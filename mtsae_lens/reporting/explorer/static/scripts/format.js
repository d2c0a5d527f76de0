// Numbers and tokens as text. A missing value is "-".
(function () {
  "use strict";
  const MISSING = "-";
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  const minus = (text) => text.replace("-", "\u2212");

  function number(value, digits = 3) {
    if (missing(value)) return MISSING;
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1000) return minus(Math.round(value).toLocaleString("en-US"));
    return size < 1e-4 ? minus(value.toExponential(1)) : minus(String(Number(value.toPrecision(digits))));
  }

  function fixed(value, decimals = 3) {
    if (missing(value)) return MISSING;
    const text = value.toFixed(decimals);
    return Number(text) === 0 ? text.replace("-", "") : minus(text);
  }

  function signed(value, decimals = 3) {
    const text = fixed(value, decimals);
    return !missing(value) && Number(value.toFixed(decimals)) > 0 ? "+" + text : text;
  }

  // A number with its sign, by significant digits.
  const signedNumber = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);

  function percent(value) {
    if (missing(value)) return MISSING;
    const share = Math.abs(value * 100);
    const sign = value < 0 ? "\u2212" : "";
    if (share === 0) return "0 %";
    if (share < 0.001) return sign ? "about 0 %" : "<0.001 %";
    return sign + (share >= 10 ? share.toFixed(0) : String(Number(share.toPrecision(2)))) + " %";
  }

  // A percentage with a fixed number of decimals, for columns.
  function share(value, decimals = 1) {
    if (missing(value)) return MISSING;
    const least = 10 ** -decimals;
    return value > 0 && value * 100 < least ? "<" + least.toFixed(decimals) + " %" : fixed(value * 100, decimals) + " %";
  }

  const count = (value) => (missing(value) ? MISSING : value.toLocaleString("en-US"));
  const plain = (value) => minus(String(Number(value.toFixed(2))));

  function dilation(value) {
    if (missing(value)) return MISSING;
    return value === 0 ? "token alone" : "dilation " + plain(value);
  }

  const offset = (value) => (value === 0 ? "0" : minus(String(value)));

  // The rank of a firing among all firings of its feature. It is rounded down, so that the text never overstates it.
  function quantile(value) {
    if (missing(value)) return MISSING;
    if (value === 1) return "its strongest";
    if (value >= 0.9995) return "strongest 0.1 %";
    if (value < 0.01) return "weakest 1 %";
    const percentile = value * 100;
    return "above " + (percentile >= 90 ? fixed(Math.floor(percentile * 10) / 10, 1) : Math.floor(percentile)) + " % of its firings";
  }

  const BREAKS = /\r\n|[\n\r\u2028\u2029\u0085]/g;
  const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
  const codePoint = (character) => "\u27e8U+" + character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9";

  // A token in running text: spaces stay, line breaks and invisible characters are made visible.
  function token(text) {
    return text.replace(BREAKS, "\u21b5").replace(/\t/g, "\u21e5").replace(INVISIBLE, codePoint);
  }

  // A single token: the spaces around it are made visible too.
  function chip(text) {
    if (missing(text)) return MISSING;
    if (text === "") return "\u2205";
    return token(text).replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length));
  }

  // The last part of a path; any other name as it is.
  const ending = (text) => (/^(\.|~|\/|[A-Za-z]:)/.test(text) ? text.split(/[\\/]/).pop() || text : text);

  const breaks = (text) => /[\n\r\u2028\u2029\u0085]$/.test(text);

  MT.format = { number, fixed, signed, signedNumber, percent, share, count, plain, dilation, offset, quantile, token, chip, ending, breaks, missing };
})();
