// JSON Schema as OpenAPI has it, in words.

// The schema that a reference means.
export function resolved(schema, api) {
  const path = schema?.$ref?.match(/^#\/(.+)/)?.[1];
  return path ? resolved(path.split("/").reduce((at, name) => at?.[name], api) ?? {}, api) : (schema ?? {});
}

// Its type, choices and bounds in a few words; what is nested is named, not written out.
export function words(schema, api) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices) return [...new Set(choices.map((choice) => words(choice, api)))].join(" or ");
  const kind = [schema.type ?? "anything"].flat().join(" or ");
  const of = schema.type === "array" && schema.items ? ` of ${words(schema.items, api)}` : "";
  return kind + of + bounds(schema);
}

function bounds(schema) {
  const low = schema.minimum ?? schema.ge;
  const high = schema.maximum ?? schema.le;
  if (low === undefined && high === undefined) return "";
  return ` (${[low === undefined ? "" : `at least ${low}`, high === undefined ? "" : `at most ${high}`].filter(Boolean).join(", ")})`;
}

// The fields of an object: name, type in words, description, whether it must be given. Of several objects, all of them.
export function fields(schema, api) {
  const own = resolved(schema, api);
  const parts = own.anyOf ?? own.oneOf ?? own.allOf ?? [];
  const rows = Object.entries(own.properties ?? {}).map(([name, value]) => ({
    name,
    type: words(value, api),
    about: value.description ?? resolved(value, api).description ?? "",
    required: own.required?.includes(name) ?? false,
  }));
  return [...rows, ...parts.flatMap((part) => fields(part, api))];
}

// Every operation, in the description's order.
export function operations(api) {
  const methods = ["get", "put", "post", "delete", "patch", "head", "options"];
  return Object.entries(api.paths).flatMap(([path, item]) =>
    methods.filter((method) => item[method]).map((method) => ({ path, method: method.toUpperCase(), ...item[method] })),
  );
}
