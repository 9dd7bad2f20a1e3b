// The form of filters: made from what the collection holds, no JSON needed; JSON for who wants it.

import { address, call } from "./api.js";
import { byId, element } from "./dom.js";
import { isFiltered } from "./filters.js";
import { emptyState } from "./state.js";

/** Ask what the collection can be filtered by, and fill the form. state(): as it is now. changed(): a condition
 *  is another one. Returns the facets. */
export async function loadFilters(state, changed) {
  const facets = await call(address(`collections/${encodeURIComponent(state().collection)}/facets`));
  const take = (filters, group) => {
    Object.assign(state(), { filters: filters ?? emptyState().filters, group, offset: 0 });
    if (filters === null) showFilters(facets, state(), take);
    changed();
  };
  showFilters(facets, state(), take);
  byId("filters").open ||= isFiltered(state().filters);
  return facets;
}

/** Fill the form. facets: of the service. filters, group: as they are now. changed(filters, group). */
function showFilters(facets, { filters, group }, changed) {
  const form = { filters: structuredClone(filters), group };
  const tell = () => changed(form.filters, form.group);
  byId("filter-fields").replaceChildren(
    ...labelChoices(facets, form, tell),
    countField(facets, form, tell),
    ...facets.keys.map((facet) => (facet.kind === "number" ? rangeField : choices)(facet, form, tell)),
    groupField(facets, form, tell),
    jsonField(form, tell),
    element("button", { type: "button", on: { click: () => changed(null, "") } }, "Take all off"),
  );
}

function labelChoices({ labels }, form, tell) {
  if (!labels.length) return [];
  const boxes = labels.map((label) =>
    toggle(label, form.filters.labels.includes(label), (on) => {
      form.filters.labels = on ? [...form.filters.labels, label] : form.filters.labels.filter((one) => one !== label);
      tell();
    }),
  );
  return [element("fieldset", {}, element("legend", {}, "Holds one of"), ...boxes)];
}

function countField({ max_count: most }, form, tell) {
  const field = number("at least", form.filters.min, (value) => {
    form.filters.min = value;
    tell();
  });
  field.querySelector("input").max = most;
  return element("fieldset", {}, element("legend", {}, "Number of objects"), field);
}

function choices({ key, values }, form, tell) {
  const chosen = () => form.filters.values[key] ?? [];
  const boxes = values.map((value) =>
    toggle(String(value), chosen().includes(value), (on) => {
      form.filters.values[key] = on ? [...chosen(), value] : chosen().filter((one) => one !== value);
      tell();
    }),
  );
  return element("fieldset", {}, element("legend", {}, key), ...boxes);
}

function rangeField({ key, min, max }, form, tell) {
  const range = () => form.filters.ranges[key] ?? [null, null];
  const low = number("from", range()[0], (value) => {
    form.filters.ranges[key] = [value, range()[1]];
    tell();
  });
  const high = number("to", range()[1], (value) => {
    form.filters.ranges[key] = [range()[0], value];
    tell();
  });
  low.querySelector("input").placeholder = min;
  high.querySelector("input").placeholder = max;
  return element("fieldset", {}, element("legend", {}, key), low, high);
}

function groupField({ keys, labels }, form, tell) {
  const names = keys.filter(({ kind }) => kind === "text").map(({ key }) => key);
  if (labels.length) names.push("soir.labels");
  const options = names.map((name) => element("option", { value: name, selected: name === form.group }, name));
  const select = element("select", { on: { change: (event) => {
    form.group = event.target.value;
    tell();
  } } }, element("option", { value: "" }, "nothing"), ...options);
  return element("label", { class: "field" }, "Group by ", select);
}

function jsonField(form, tell) {
  const area = element("textarea", {
    rows: 4, spellcheck: "false", placeholder: '{"must": [{"key": "soir.count", "range": {"gte": 3}}]}',
    on: { change: (event) => {
      form.filters.json = event.target.value;
      tell();
    } },
  });
  area.value = form.filters.json;
  const open = Boolean(form.filters.json);
  return element("details", { open }, element("summary", {}, "As Qdrant's JSON"),
    element("label", {}, element("span", { class: "hint" }, "added to the conditions above"), area));
}

function toggle(text, checked, changed) {
  const box = element("input", { type: "checkbox", checked, on: { change: (event) => changed(event.target.checked) } });
  return element("label", { class: "toggle" }, box, ` ${text}`);
}

function number(text, value, changed) {
  const field = element("input", { type: "number", step: "any", on: { change: (event) => {
    const entered = event.target.value.trim();
    changed(entered === "" ? null : Number(entered));
  } } });
  field.value = value ?? "";
  return element("label", { class: "field" }, `${text} `, field);
}
