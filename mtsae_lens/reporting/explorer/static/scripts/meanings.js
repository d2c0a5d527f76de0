// What each number means, in one line: shown as a tooltip and in the legend. The columns are declared in mtsae_lens/facts/records.py.
(function () {
  "use strict";
  const { features, examples } = MT.data.at("columns", 0);

  // The function that writes a value of a column as text.
  const formatter = ({ format, digits }) => (value) => (digits === null ? MT.format[format](value) : MT.format[format](value, digits));

  const columns = Object.entries(features);

  MT.meanings = {
    ...Object.fromEntries(columns.map(([name, { meaning }]) => [name, meaning])),
    quantile: "Share of the feature's firings that are weaker than this peak, read off their histogram.",
    taps: examples.offset_contributions.meaning,
    model: examples.model_attribution.meaning,
  };
  MT.titles = Object.fromEntries(columns.map(([name, { title }]) => [name, title]));
  MT.glossary = columns.filter(([, { title }]) => title !== null).map(([, { title, meaning }]) => [title, meaning]);
  // [title, column, function that writes its value], for the summary at the top of a feature's page.
  MT.summary = columns.filter(([, { format }]) => format !== null).map(([name, column]) => [column.title, name, formatter(column)]);
})();
