// Shows openapi.json as a page.
"use strict";

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function typeOf(schema, all) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, all)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items, all)}`;
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return `object of ${typeOf(schema.additionalProperties, all)}`;
  }
  return schema.type || "anything";
}

function table(head, rows) {
  const element = make("table");
  const top = element.createTHead().insertRow();
  head.forEach((text) => top.append(make("th", text)));
  const body = element.createTBody();
  rows.forEach((cells) => {
    const row = body.insertRow();
    cells.forEach((text) => row.append(make("td", text)));
  });
  return element;
}

function operation(path, method, content, all) {
  const section = make("section");
  const title = make("h2");
  title.append(make("span", method.toUpperCase(), "method"), make("code", path));
  section.append(title, make("p", content.description || content.summary || ""));
  const parameters = (content.parameters || []).map((p) => [
    p.name, p.in, typeOf(p.schema, all), p.required ? "required" : "optional",
  ]);
  if (content.requestBody) {
    for (const [kind, body] of Object.entries(content.requestBody.content)) {
      for (const name of Object.keys(body.schema.properties || {})) {
        parameters.push([name, kind, "files", "required"]);
      }
    }
  }
  if (parameters.length) section.append(table(["parameter", "in", "type", ""], parameters));
  const responses = Object.entries(content.responses).map(([status, response]) => {
    const [kind, body] = Object.entries(response.content || {})[0] || ["", {}];
    return [status, response.description, kind, typeOf(body.schema, all)];
  });
  section.append(table(["status", "meaning", "content", "type"], responses));
  return section;
}

function kinds(all) {
  return Object.entries(all).filter(([name]) => !/Validation/.test(name)).map(([name, schema]) => {
    const section = make("section");
    section.id = name;
    section.append(make("h2", name), make("p", (schema.description || "").split("\n")[0]));
    const lines = (schema.description || "").split("\n");
    const rows = Object.entries(schema.properties || {}).map(([key, value]) => {
      return [key, typeOf(value, all), described(lines, key)];
    });
    section.append(table(["field", "type", "meaning"], rows));
    return section;
  });
}

// The text about a field in a docstring: "  field: text", continued in lines of more blanks.
function described(lines, key) {
  const start = lines.findIndex((line) => line.trim().startsWith(`${key}: `));
  if (start < 0) return "";
  const text = [lines[start].trim().slice(key.length + 2)];
  const depth = lines[start].search(/\S/);
  for (let i = start + 1; i < lines.length && lines[i].search(/\S/) > depth; i++) text.push(lines[i].trim());
  return text.join(" ");
}

async function show() {
  document.getElementById("curl").textContent =
    `curl -F files=@cell1.png -F files=@cell2.png ${new URL("api/predict", location.href)}`;
  const description = await (await fetch("openapi.json")).json();
  const all = description.components?.schemas || {};
  const place = document.getElementById("paths");
  place.style.display = "grid";
  place.style.gap = "1rem";
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, content] of Object.entries(methods)) {
      place.append(operation(path, method, content, all));
    }
  }
  place.append(...kinds(all));
}

show();
