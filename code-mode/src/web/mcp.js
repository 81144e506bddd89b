// The value in what an MCP server answers to a call.
(function (hooks, shared) {
  "use strict";
  const { toolError } = hooks;
  const { apply, defineProperty } = Reflect;
  const { isArray } = Array;
  const { parse } = JSON;
  const join = Array.prototype.join;
  const startsAsJson = /^\s*[[{]/;
  const test = RegExp.prototype.test;

  const set = (object, name, value) =>
    defineProperty(object, name, {
      __proto__: null,
      value,
      writable: true,
      configurable: true,
    });

  // The texts of the blocks, one below the other; `null` where there is another block.
  function textOf(blocks, only) {
    const texts = [];
    for (let i = 0; i < blocks.length; i++) {
      const block = blocks[i];
      if (block?.type === "text" && typeof block.text === "string") {
        texts[texts.length] = block.text;
      } else if (only) {
        return null;
      }
    }
    return apply(join, texts, ["\n"]);
  }

  function valueOf(name, result, failed) {
    if (typeof result !== "object" || result === null) return result;
    const { content } = result;
    const blocks = isArray(content) ? content : [];
    if (result.isError === true) {
      const text = textOf(blocks, false);
      const thrown = failed(text === "" ? `${name} failed without a message` : text);
      set(thrown, "result", result);
      throw thrown;
    }
    if (result.structuredContent !== undefined) return result.structuredContent;
    if (blocks.length === 0) return blocks;
    const text = textOf(blocks, true);
    if (text === null) return content;
    if (blocks.length === 1 && apply(test, startsAsJson, [text])) {
      try {
        return parse(text);
      } catch {
        // It only looked like JSON.
      }
    }
    return text;
  }

  // A tool whose native function gives the whole result.
  shared.mcpTool = (name, native) => {
    const answered = async (call, read) => {
      const result = await call;
      return read(result, (message) => toolError(message, call));
    };
    const tool = {
      [name]: (input) =>
        answered(native(input), (result, failed) => valueOf(name, result, failed)),
    }[name];
    set(tool, "raw", (input) => answered(native(input), (result) => result));
    return tool;
  };

  return { __proto__: null };
});
