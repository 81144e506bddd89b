// `console`: values as a person at a console reads them, into the cell's output.
(function (hooks, shared) {
  "use strict";
  const { log, nowMs } = hooks;
  const { apply, ownKeys, getPrototypeOf, getOwnPropertyDescriptor } = Reflect;
  const { isArray } = Array;
  const { stringify } = JSON;
  const call = (f) => (receiver, ...given) => apply(f, receiver, given);
  const join = call(Array.prototype.join);
  const push = call(Array.prototype.push);
  const slice = call(String.prototype.slice);
  const padEnd = call(String.prototype.padEnd);
  const repeat = call(String.prototype.repeat);
  const split = call(String.prototype.split);
  const indexOf = call(String.prototype.indexOf);
  const matches = call(RegExp.prototype.test);
  const dateText = call(Date.prototype.toISOString);
  const dateValue = call(Date.prototype.getTime);
  const regexpText = call(RegExp.prototype.toString);
  const symbolText = call(Symbol.prototype.toString);
  const mapForEach = call(Map.prototype.forEach);
  const setForEach = call(Set.prototype.forEach);
  const setHas = call(Set.prototype.has);
  const setAdd = call(Set.prototype.add);
  const setDelete = call(Set.prototype.delete);
  const sizeOf = (prototype) =>
    call(getOwnPropertyDescriptor(prototype, "size").get);
  const mapSize = sizeOf(Map.prototype);
  const setSize = sizeOf(Set.prototype);
  const isView = ArrayBuffer.isView;
  const objectPrototype = Object.prototype;
  const [MapCtor, SetCtor, DateCtor, RegExpCtor, ErrorCtor, PromiseCtor] = [
    Map, Set, Date, RegExp, Error, Promise,
  ];
  const [StringOf, NumberOf, BooleanOf, ParseInt, ParseFloat] = [
    String, Number, Boolean, parseInt, parseFloat,
  ];
  const sameValue = Object.is;
  const functionText = call(Function.prototype.toString);
  const mapGet = call(Map.prototype.get);
  const mapSet = call(Map.prototype.set);
  const fixed = call(Number.prototype.toFixed);

  const MAX_DEPTH = 5;
  const MAX_ELEMENTS = 200;
  // Of all values of one call together: wide data in wide data has no end.
  const MAX_PARTS = 20000;
  let partsLeft = MAX_PARTS;
  const LINE = 76;
  const identifier = /^[A-Za-z_$][\w$]*$/;

  function shownKey(key) {
    if (typeof key === "symbol") return `[${symbolText(key)}]`;
    return matches(identifier, key) ? key : stringify(key);
  }

  // Parts between brackets, on one line where they are short.
  function bracketed(open, parts, close, depth) {
    if (parts.length === 0) return open + close;
    const line = `${open} ${join(parts, ", ")} ${close}`;
    if (line.length <= LINE && indexOf(line, "\n") < 0) return line;
    const indent = repeat("  ", depth + 1);
    return `${open}\n${indent}${join(parts, `,\n${indent}`)}\n${repeat("  ", depth)}${close}`;
  }

  function nameOf(object) {
    try {
      const name = getPrototypeOf(object)?.constructor?.name;
      return typeof name === "string" ? name : "";
    } catch {
      return "";
    }
  }

  function inspectFunction(value) {
    const name = getOwnPropertyDescriptor(value, "name")?.value;
    const kind = slice(functionText(value), 0, 6) === "class " ? "class" : "Function";
    return typeof name === "string" && name !== "" ? `[${kind}: ${name}]` : `[${kind}]`;
  }

  function inspect(value, depth, seen) {
    switch (typeof value) {
      case "string":
        return depth < 0 ? value : stringify(value);
      case "bigint":
        return `${value}n`;
      case "symbol":
        return symbolText(value);
      case "function":
        return inspectFunction(value);
      case "object":
        return value === null ? "null" : inspectObject(value, depth < 0 ? 0 : depth, seen);
      default:
        return sameValue(value, -0) ? "-0" : StringOf(value);
    }
  }

  const errorParts = ["cause", "errors"];
  function inspectError(error, depth, seen) {
    const { stack } = error;
    let text = typeof stack === "string" ? stack : StringOf(error);
    setAdd(seen, error);
    for (let i = 0; i < errorParts.length; i++) {
      const value = getOwnPropertyDescriptor(error, errorParts[i])?.value;
      if (value !== undefined && depth < MAX_DEPTH) {
        text += `\n[${errorParts[i]}]: ${inspect(value, depth + 1, seen)}`;
      }
    }
    const parts = [];
    const keys = ownKeys(error);
    for (let i = 0; i < keys.length && i < MAX_ELEMENTS; i++) {
      const property = getOwnPropertyDescriptor(error, keys[i]);
      // The message has the tool's answer already.
      if (!property?.enumerable || property.get !== undefined) continue;
      if (keys[i] === "cause" || keys[i] === "errors") continue;
      push(parts, `${shownKey(keys[i])}: ${inspect(property.value, depth + 1, seen)}`);
    }
    setDelete(seen, error);
    return parts.length === 0 ? text : `${text}\n${bracketed("{", parts, "}", depth)}`;
  }

  function inspectObject(object, depth, seen) {
    if (setHas(seen, object)) return "[Circular]";
    if (partsLeft <= 0) return "...";
    if (object instanceof ErrorCtor) return inspectError(object, depth, seen);
    if (object instanceof StringOf || object instanceof NumberOf || object instanceof BooleanOf) {
      return `[${nameOf(object)}: ${inspect(object.valueOf(), 0, seen)}]`;
    }
    if (object instanceof DateCtor) {
      const time = dateValue(object);
      return time === time ? dateText(object) : "Invalid Date";
    }
    if (object instanceof RegExpCtor) return regexpText(object);
    if (object instanceof PromiseCtor) return "Promise { await it for its value }";
    const name = nameOf(object);
    if (depth > MAX_DEPTH) return isArray(object) ? "[Array]" : `[${name || "Object"}]`;
    setAdd(seen, object);
    try {
      return inspectParts(object, name, depth, seen);
    } finally {
      setDelete(seen, object);
    }
  }

  function inspectParts(object, name, depth, seen) {
    const parts = [];
    let more = 0;
    const add = (make) => {
      if (parts.length < MAX_ELEMENTS && partsLeft > 0) {
        partsLeft--;
        push(parts, make());
      } else more++;
    };
    const inner = (value) => inspect(value, depth + 1, seen);
    const finish = (open, close) => {
      if (more > 0) push(parts, `... ${more} more`);
      return bracketed(open, parts, close, depth);
    };
    if (isArray(object) || isView(object)) {
      const { length } = object;
      if (length === undefined) return `${name} { ${object.byteLength} bytes }`;
      for (let i = 0; i < length && i < MAX_ELEMENTS; i++) {
        let holes = 0;
        while (i + holes < length && holes < MAX_ELEMENTS && !(i + holes in object)) holes++;
        if (holes > 0) {
          add(() => `<${holes} empty>`);
          i += holes - 1;
        } else add(() => inner(object[i]));
      }
      more = length > MAX_ELEMENTS ? length - MAX_ELEMENTS : 0;
      return finish(isArray(object) ? "[" : `${name}(${length}) [`, "]");
    }
    if (object instanceof MapCtor) {
      mapForEach(object, (value, key) => add(() => `${inner(key)} => ${inner(value)}`));
      return finish(`Map(${mapSize(object)}) {`, "}");
    }
    if (object instanceof SetCtor) {
      setForEach(object, (value) => add(() => inner(value)));
      return finish(`Set(${setSize(object)}) {`, "}");
    }
    const keys = ownKeys(object);
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i];
      const property = getOwnPropertyDescriptor(object, key);
      if (property === undefined || !property.enumerable) continue;
      add(() => {
        const shown =
          property.get === undefined ? inner(property.value) : "[Getter]";
        return `${shownKey(key)}: ${shown}`;
      });
    }
    // A value with its own form, such as a URL, is shown in it.
    if (parts.length === 0 && typeof object.toJSON === "function") {
      return `${name} ${inspect(object.toJSON(), depth + 1, seen)}`;
    }
    const plain = name === "" || name === "Object" ||
      getPrototypeOf(object) === objectPrototype;
    return finish(plain ? "{" : `${name} {`, "}");
  }

  // Showing a value never throws, whatever the value does.
  function inspected(value, depth) {
    partsLeft = MAX_PARTS;
    try {
      return inspect(value, depth, new SetCtor());
    } catch {
      return typeof value === "function" ? "[Function]" : "[a value that cannot be shown]";
    }
  }
  const show = (value) => inspected(value, -1);
  shared.show = show;

  // The arguments of a console function as one text, with `%s` and its like.
  function format(given) {
    const parts = [];
    let next = 0;
    if (typeof given[0] === "string" && given.length > 1 && indexOf(given[0], "%") >= 0) {
      const pieces = split(given[0], "%");
      let text = pieces[0];
      next = 1;
      for (let i = 1; i < pieces.length; i++) {
        const piece = pieces[i];
        const kind = piece[0];
        if (piece === "") {
          // `%%` is one sign.
          text += "%";
          if (i + 1 < pieces.length) text += pieces[++i];
          continue;
        }
        if (next >= given.length || indexOf("sdifjoOc", kind) < 0) {
          text += `%${piece}`;
          continue;
        }
        const value = given[next++];
        if (kind === "s") text += typeof value === "string" ? value : show(value);
        else if (kind === "c") text += "";
        else if (kind === "o" || kind === "O") text += inspected(value, 0);
        else text += converted(kind, value);
        text += slice(piece, 1);
      }
      push(parts, text);
    }
    for (; next < given.length; next++) push(parts, show(given[next]));
    return join(parts, " ");
  }

  function converted(kind, value) {
    try {
      if (kind === "j") return stringify(value);
      if (typeof value === "bigint") return `${value}n`;
      if (typeof value === "object" || typeof value === "symbol") return "NaN";
      if (kind === "d") return StringOf(NumberOf(value));
      return StringOf(kind === "i" ? ParseInt(value) : ParseFloat(value));
    } catch {
      return "[Circular]";
    }
  }

  function table(rows, columns) {
    if (typeof rows !== "object" || rows === null) return show(rows);
    const heads = ["(index)"];
    const lines = [];
    const addColumn = (name) => {
      for (let i = 1; i < heads.length; i++) if (heads[i] === name) return i;
      push(heads, name);
      return heads.length - 1;
    };
    const cell = (value) => inspected(value, 1);
    const addRow = (index, row) => {
      const line = [typeof index === "string" ? index : cell(index)];
      if (typeof row === "object" && row !== null && !(row instanceof DateCtor)) {
        const keys = columns ?? ownKeys(row);
        for (let i = 0; i < keys.length; i++) {
          const key = keys[i];
          if (typeof key === "symbol" || (isArray(row) && key === "length")) continue;
          line[addColumn(key)] = key in row ? cell(row[key]) : "";
        }
      } else {
        line[addColumn("Values")] = cell(row);
      }
      push(lines, line);
    };
    if (rows instanceof MapCtor) {
      mapForEach(rows, (value, key) => addRow(key, value));
    } else if (rows instanceof SetCtor) {
      let number = 0;
      setForEach(rows, (value) => addRow(StringOf(number++), value));
    } else {
      const keys = ownKeys(rows);
      for (let i = 0; i < keys.length; i++) {
        if (typeof keys[i] === "symbol" || (isArray(rows) && keys[i] === "length")) continue;
        addRow(keys[i], rows[keys[i]]);
      }
    }
    const widths = [];
    for (let column = 0; column < heads.length; column++) {
      let width = heads[column].length;
      for (let i = 0; i < lines.length; i++) {
        const length = (lines[i][column] ?? "").length;
        if (length > width) width = length;
      }
      widths[column] = width;
    }
    const shownLine = (line) => {
      const cells = [];
      for (let i = 0; i < heads.length; i++) push(cells, padEnd(line[i] ?? "", widths[i]));
      return `| ${join(cells, " | ")} |`;
    };
    const rules = [];
    for (let i = 0; i < heads.length; i++) push(rules, repeat("-", widths[i]));
    const out = [shownLine(heads), `|-${join(rules, "-|-")}-|`];
    for (let i = 0; i < lines.length; i++) push(out, shownLine(lines[i]));
    return join(out, "\n");
  }

  function makeConsole() {
    let indent = "";
    const counts = new MapCtor();
    const timers = new MapCtor();
    const say = (level, text) => {
      const lines = indent === "" ? text : indent + join(split(text, "\n"), `\n${indent}`);
      log(`[${level}] ${lines}`);
    };
    const sayer = (level) => ({ [level]: (...given) => say(level, format(given)) })[level];
    const elapsed = (label) => {
      const since = mapGet(timers, label);
      return since === undefined ? undefined : `${label}: ${fixed(nowMs() - since, 1)} ms`;
    };
    return {
      log: sayer("log"),
      info: sayer("info"),
      warn: sayer("warn"),
      error: sayer("error"),
      debug: sayer("debug"),
      table: (rows, columns) => {
        let shown;
        try {
          shown = `\n${table(rows, columns)}`;
        } catch {
          shown = show(rows);
        }
        say("table", shown);
      },
      dir: (value) => say("log", inspected(value, 0)),
      dirxml: (...given) => say("log", format(given)),
      clear: () => {},
      timeStamp: () => {},
      profile: () => {},
      profileEnd: () => {},
      trace: (...given) => say("trace", format(given)),
      assert: (condition, ...given) => {
        if (condition) return;
        const text = format(given);
        say("error", text === "" ? "Assertion failed" : `Assertion failed: ${text}`);
      },
      count: (label = "default") => {
        const count = (mapGet(counts, label) ?? 0) + 1;
        mapSet(counts, label, count);
        say("log", `${label}: ${count}`);
      },
      countReset: (label = "default") => void mapSet(counts, label, 0),
      group: (...given) => {
        if (given.length > 0) say("log", format(given));
        indent += "  ";
      },
      groupCollapsed: (...given) => {
        if (given.length > 0) say("log", format(given));
        indent += "  ";
      },
      groupEnd: () => {
        indent = slice(indent, 2);
      },
      time: (label = "default") => void mapSet(timers, label, nowMs()),
      timeLog: (label = "default", ...given) => {
        const text = elapsed(label);
        if (text !== undefined) say("log", join([text, format(given)], " "));
      },
      timeEnd: (label = "default") => {
        const text = elapsed(label);
        if (text !== undefined) say("log", text);
        mapSet(timers, label, undefined);
      },
    };
  }

  return { __proto__: null, console: makeConsole };
});
