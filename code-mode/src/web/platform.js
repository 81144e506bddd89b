// What programs expect of any host: cloning, tasks, timers, randomness, time; and the
// search of tools.
(function (hooks, shared) {
  "use strict";
  const {
    clone, fail, fillRandom, uuid, nowMs, timeOrigin, setTimer, clearTimer, setRepeating,
    searchTools, describeTool, refuse,
  } = hooks;
  const { apply, defineProperty, getPrototypeOf, getOwnPropertyDescriptor, ownKeys } = Reflect;
  const { parse } = JSON;
  const TypeErrorCtor = TypeError;
  const then = Promise.prototype.then;
  const settled = Promise.resolve();
  const isView = ArrayBuffer.isView;
  const typedArrayName = getOwnPropertyDescriptor(
    getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag,
  ).get;

  function structuredClone(value, options) {
    if (arguments.length === 0) throw new TypeErrorCtor("structuredClone needs a value");
    const transfer = options?.transfer === undefined ? [] : [...options.transfer];
    return clone(value, transfer, (message) => {
      throw shared.refuse(message, "DataCloneError");
    });
  }

  function queueMicrotask(callback) {
    if (typeof callback !== "function") {
      throw new TypeErrorCtor("queueMicrotask takes a function");
    }
    apply(then, settled, [
      () => {
        try {
          callback();
        } catch (error) {
          fail(error);
        }
      },
    ]);
  }

  // Arguments beyond the delay are the callback's.
  const bound = (callback, given) =>
    given.length === 0 || typeof callback !== "function"
      ? callback
      : () => apply(callback, undefined, given);
  function setTimeout(callback, ms, ...given) {
    return setTimer(bound(callback, given), ms);
  }
  function setInterval(callback, ms, ...given) {
    return setRepeating(bound(callback, given), ms);
  }
  function clearInterval(id) {
    clearTimer(id);
  }

  const MOST_RANDOM = 65536;
  const makeCrypto = () => ({
    randomUUID: () => uuid(),
    getRandomValues(array) {
      const name = isView(array) ? apply(typedArrayName, array, []) : undefined;
      if (name === undefined || name === "Float32Array" || name === "Float64Array") {
        throw shared.refuse("getRandomValues takes an array of integers", "TypeMismatchError");
      }
      if (array.byteLength > MOST_RANDOM) {
        throw shared.refuse(
          `${array.byteLength} bytes are more than the ${MOST_RANDOM} of one call`,
          "QuotaExceededError",
        );
      }
      fillRandom(array);
      return array;
    },
  });

  const makePerformance = () => ({
    now: () => nowMs(),
    timeOrigin: timeOrigin(),
    toJSON() {
      return { timeOrigin: this.timeOrigin };
    },
  });

  const DETAILS = ["names", "summaries", "declarations"];
  function search_tools(query = "", options = {}) {
    if (typeof query === "object" && query !== null) {
      options = query;
      query = options.query ?? "";
    }
    query ??= "";
    const limit = options?.limit ?? 10;
    const server = options?.server ?? undefined;
    const detail = options?.detail ?? DETAILS[1];
    if (detail !== DETAILS[0] && detail !== DETAILS[1] && detail !== DETAILS[2]) {
      refuse(`search_tools: detail is "names", "summaries" or "declarations", not ${detail}`);
    }
    const count = typeof limit === "bigint" ? 10 : +limit;
    if (!(count >= 1)) refuse("search_tools: limit is a number from 1");
    const found = parse(
      searchTools(`${query}`, count, server === undefined ? undefined : `${server}`, detail),
    );
    const { tools } = found;
    if (tools.length === 0) {
      // What it prints as says where else to look.
      const toJSON = () => ({ found: [], servers: found.servers });
      defineProperty(tools, "toJSON", { __proto__: null, value: toJSON });
      defineProperty(tools, "servers", { __proto__: null, value: found.servers });
    }
    return tools;
  }
  function describe_tool(name) {
    if (typeof name === "function") name = name.name;
    return describeTool(`${name}`);
  }

  function read_resource(server, uri) {
    const { tools } = globalThis;
    if (!("read_resource" in tools)) {
      refuse("read_resource: no server of this session has resources; tools reach what there is");
    }
    const input = typeof server === "object" && server !== null ? server : { server, uri };
    return tools.read_resource(input);
  }

  // A caller that keeps the outputs of earlier cells gives them as a constant.
  function output(cell) {
    const kept = globalThis.ALL_OUTPUTS ?? {};
    const name = `${cell}`;
    if (getOwnPropertyDescriptor(kept, name) !== undefined) return kept[name];
    const names = ownKeys(kept);
    refuse(`output: nothing is kept of a cell ${name}; there is the output of ${names.length === 0 ? "none" : names.join(", ")}`);
  }

  return {
    __proto__: null,
    structuredClone: () => structuredClone,
    queueMicrotask: () => queueMicrotask,
    setTimeout: () => setTimeout,
    setInterval: () => setInterval,
    clearInterval: () => clearInterval,
    crypto: makeCrypto,
    performance: makePerformance,
    search_tools: () => search_tools,
    describe_tool: () => describe_tool,
    read_resource: () => read_resource,
    output: () => output,
  };
});
