// The filter's fields as Qdrant's JSON. Nothing here touches the page.

/** Qdrant's filter, or null for none. Raises SyntaxError where the expert's JSON is none. */
export function toFilter(filters) {
  const must = [];
  if (filters.labels.length) must.push({ key: "soir.labels", match: { any: filters.labels } });
  if (filters.min) must.push({ key: "soir.count", range: { gte: filters.min } });
  for (const [key, values] of Object.entries(filters.values)) {
    if (!values.length) continue;
    const match = values.every((value) => typeof value === "boolean")
      ? { should: values.map((value) => ({ key, match: { value } })) }
      : { key, match: { any: values } };
    must.push(match);
  }
  for (const [key, [low, high]] of Object.entries(filters.ranges)) {
    const range = {};
    if (low !== null) range.gte = low;
    if (high !== null) range.lte = high;
    if (Object.keys(range).length) must.push({ key, range });
  }
  const own = filters.json.trim() ? JSON.parse(filters.json) : null;
  if (own) must.push(own);
  if (own && must.length === 1) return own;
  return must.length ? { must } : null;
}

/** Whether any condition is set. */
export function isFiltered(filters) {
  try {
    return toFilter(filters) !== null;
  } catch {
    return true;
  }
}
