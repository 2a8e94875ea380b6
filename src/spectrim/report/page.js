// Paints the figures anew in other colours, and puts the columns of the chosen layer in theirs.
const models = () => Bokeh.documents.flatMap(each => [...each._all_models.values()]);
const repaint = () => Bokeh.documents.flatMap(each => each.roots()).forEach(root => root.change.emit());
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", repaint);
const chosen = document.getElementById("layer");
if (chosen) {
  const layers = JSON.parse(document.getElementById("spectra").textContent);
  chosen.addEventListener("change", () => {
    const columns = layers[chosen.value];
    for (const model of models()) if (model.type === "ColumnDataSource" && model.name in columns) model.data = columns[model.name];
  });
}
