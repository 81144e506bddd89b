// The part of a cell's globals that is JavaScript. Evaluated once, when the
// startup snapshot is made; the function below is called with the native hooks
// and returns what the runtime needs to hold on to.
//
// Everything it uses later is taken now, so that a cell may overwrite any global
// or prototype without breaking or hijacking a helper. `await` on a promise and
// object literals need no such care; method calls on built-ins do.
(function (hooks, web) {
  "use strict";
  const {
    refuse,
    toolNames,
    hasTool,
    toolFunction,
    parse,
    unknownTool,
    serverTools,
    declarationOf,
  } = hooks;
  const PromiseCtor = Promise;
  const MapCtor = Map;
  const ProxyCtor = Proxy;
  const iterator = Symbol.iterator;
  const mapForEach = Map.prototype.forEach;
  const {
    apply,
    defineProperty,
    deleteProperty,
    get,
    getOwnPropertyDescriptor,
    has,
    ownKeys,
    preventExtensions,
    set,
  } = Reflect;

  const define = (object, name, value, enumerable) =>
    defineProperty(object, name, {
      __proto__: null,
      value,
      writable: true,
      enumerable,
      configurable: true,
    });

  // Prototypes of the errors that helpers and tools throw. They are real errors;
  // only their text is the bare message.
  function errorPrototype(name, methods) {
    const prototype = { __proto__: Error.prototype };
    const constructor = {
      [name]: function () {
        refuse(`${name} cannot be constructed`);
      },
    }[name];
    define(constructor, "prototype", prototype, false);
    define(prototype, "constructor", constructor, false);
    define(prototype, "name", name, false);
    define(prototype, "message", "", false);
    for (const key of ownKeys(methods)) {
      define(prototype, key, methods[key], false);
    }
    return prototype;
  }
  const helperErrorPrototype = errorPrototype("HelperError", {
    toString() {
      return this.message;
    },
  });
  const toolErrorPrototype = errorPrototype("ToolError", {
    toString() {
      return this.message;
    },
    toJSON() {
      return this.message;
    },
  });

  // `tools`: every function is made when it is first asked for by name, and all
  // of them when the object is looked at in any other way, so that from the
  // outside it is an ordinary object with a property for each tool.
  // In a guided session (`guided`) the name of an unknown tool gives a function that throws
  // an error with the nearest names, and the name of a server an object with its tools:
  // `tools.git.log` is `tools.git__log`.
  function makeTools(guided) {
    // Only tools are on it where a wrong name must be distinguished from a tool.
    const target = guided ? { __proto__: null } : {};
    // Functions made so far; `null` once `target` has them all.
    let made = { __proto__: null };
    const one = (name) => {
      if (made === null) return target[name];
      let tool = made[name];
      if (tool === undefined) {
        tool = toolFunction(name);
        if (tool !== undefined) made[name] = tool;
      }
      return tool;
    };
    const all = () => {
      if (made !== null) {
        const names = toolNames();
        for (let i = 0; i < names.length; i++) {
          define(target, names[i], one(names[i]), true);
        }
        made = null;
      }
      return target;
    };
    const missing = (name) => (argument) => refuse(unknownTool(name, argument));
    const servers = { __proto__: null };
    const server = (name) => {
      if (servers[name] !== undefined) return servers[name];
      const names = serverTools(name);
      if (names === undefined) return undefined;
      const own = { __proto__: null };
      for (let i = 0; i < names.length; i += 2) {
        if (own[names[i]] === undefined) define(own, names[i], one(names[i + 1]), true);
      }
      return (servers[name] = new ProxyCtor(own, {
        __proto__: null,
        get(_, key, receiver) {
          const tool = get(own, key, receiver);
          if (tool !== undefined || typeof key !== "string" || !asksForTool(key)) return tool;
          return missing(`${name}__${key}`);
        },
      }));
    };
    return new ProxyCtor(target, {
      __proto__: null,
      get(_, key, receiver) {
        if (made !== null && typeof key === "string") {
          const tool = one(key);
          if (tool !== undefined) return tool;
        }
        const value = get(target, key, receiver);
        if (value === undefined && guided && typeof key === "string" && asksForTool(key)) {
          return server(key) ?? missing(key);
        }
        return value;
      },
      has: (_, key) =>
        (made !== null && typeof key === "string" && hasTool(key)) ||
        has(target, key),
      set: (_, key, value, receiver) => set(all(), key, value, receiver),
      deleteProperty: (_, key) => deleteProperty(all(), key),
      defineProperty: (_, key, descriptor) =>
        defineProperty(all(), key, descriptor),
      getOwnPropertyDescriptor: (_, key) =>
        getOwnPropertyDescriptor(all(), key),
      ownKeys: () => ownKeys(all()),
      preventExtensions: () => preventExtensions(all()),
    });
  }

  // What looks at any object for these must not take `tools` for one that has them.
  const asksForTool = (key) => key !== "then" && key !== "toJSON";

  // `ALL_TOOLS` where cells may read how a tool is called: from a list of its objects.
  // A declaration is made when it is read.
  function declared(list) {
    const get = {
      get declaration() {
        return declarationOf(this.name);
      },
    };
    const property = getOwnPropertyDescriptor(get, "declaration");
    property.__proto__ = null;
    for (let i = 0; i < list.length; i++) {
      if (list[i].described) {
        delete list[i].described;
        defineProperty(list[i], "declaration", property);
      }
    }
    return list;
  }

  function as_settled(promises) {
    // A linked list of results; `head` is the last one handed out.
    let head = { __proto__: null, next: null };
    let tail = head;
    let wake = null;
    let total = 0;
    const push = (result) => {
      tail = tail.next = { __proto__: null, result, next: null };
      if (wake !== null) wake();
    };
    const watch = async (index, promise) => {
      total++;
      try {
        const value = await promise;
        push({ index, status: "fulfilled", value });
      } catch (reason) {
        push({ index, status: "rejected", reason });
      }
    };
    if (promises instanceof MapCtor) {
      apply(mapForEach, promises, [(promise, key) => void watch(key, promise)]);
    } else if (
      promises === undefined ||
      promises === null ||
      typeof promises[iterator] !== "function"
    ) {
      refuse("as_settled expects an iterable or a Map of promises");
    } else {
      let index = 0;
      for (const promise of promises) watch(index++, promise);
    }
    return (async function* () {
      for (let given = 0; given < total; given++) {
        if (head.next === null) {
          await new PromiseCtor((resolve) => {
            wake = resolve;
          });
          wake = null;
        }
        head = head.next;
        yield head.result;
      }
    })();
  }

  async function stream_settled(promises, f) {
    if (typeof f !== "function") {
      refuse("stream_settled expects a function callback");
    }
    for await (const result of as_settled(promises)) await f(result);
  }

  define(globalThis, "as_settled", as_settled, true);
  define(globalThis, "stream_settled", stream_settled, true);

  const { parse: jsonParse, stringify: jsonStringify } = JSON;
  define(JSON, "parse", parse, false);

  const guidedMakers = { __proto__: null };
  const shared = { __proto__: null };
  for (let i = 0; i < web.length; i++) {
    const makers = web[i](hooks, shared);
    for (const name of ownKeys(makers)) guidedMakers[name] = makers[name];
  }
  const makeGlobal = (name) => guidedMakers[name]();

  // Time and randomness of a cell that can be run again as it was.
  const { nowMs, timeOrigin, randomUnit } = hooks;
  const RealWeakRef = WeakRef;
  const RealRegistry = FinalizationRegistry;
  const { register, unregister } = RealRegistry.prototype;
  const RealDate = Date;
  const dateText = RealDate.prototype.toString;
  const { construct } = Reflect;
  function determine() {
    const now = () => RealDate.UTC(1970) + Math.floor(timeOrigin() + nowMs());
    const DateCtor = new ProxyCtor(RealDate, {
      __proto__: null,
      construct: (target, given, made) =>
        construct(target, given.length === 0 ? [now()] : given, made),
      apply: () => apply(dateText, new RealDate(now()), []),
      get: (target, key, receiver) =>
        key === "now" ? now : get(target, key, receiver === DateCtor ? target : receiver),
    });
    define(RealDate.prototype, "constructor", DateCtor, false);
    define(globalThis, "Date", DateCtor, false);
    define(Math, "random", () => randomUnit(), false);
    determineTemporal(now);
    determineFormats(now);
    determineCollection();
  }

  // `Temporal.Now` by the cell's clock.
  function determineTemporal(now) {
    const { Instant, Now } = Temporal;
    const { timeZoneId } = Now;
    const fromMs = Instant.fromEpochMilliseconds;
    const { toZonedDateTimeISO } = Instant.prototype;
    const { toPlainDateTime, toPlainDate, toPlainTime } = Temporal.ZonedDateTime.prototype;
    const instant = () => apply(fromMs, Instant, [now()]);
    const zoned = (zone = timeZoneId()) => apply(toZonedDateTimeISO, instant(), [zone]);
    define(Now, "instant", instant, false);
    define(Now, "zonedDateTimeISO", zoned, false);
    define(Now, "plainDateTimeISO", (zone) => apply(toPlainDateTime, zoned(zone), []), false);
    define(Now, "plainDateISO", (zone) => apply(toPlainDate, zoned(zone), []), false);
    define(Now, "plainTimeISO", (zone) => apply(toPlainTime, zoned(zone), []), false);
  }

  // Formatters that are given no date take the time of the cell's clock.
  function determineFormats(now) {
    const { prototype } = Intl.DateTimeFormat;
    const { get: formatOf } = getOwnPropertyDescriptor(prototype, "format");
    const { formatToParts } = prototype;
    defineProperty(prototype, "format", {
      __proto__: null,
      get() {
        const format = apply(formatOf, this, []);
        return (date) => format(date === undefined ? now() : date);
      },
      enumerable: false,
      configurable: true,
    });
    const methods = {
      formatToParts(date) {
        return apply(formatToParts, this, [date === undefined ? now() : date]);
      },
    };
    define(prototype, "formatToParts", methods.formatToParts, false);
  }

  // When garbage is collected depends on the machine. A weak reference holds its target here, and
  // nothing is ever finalized: the language allows both.
  function determineCollection() {
    class WeakRef {
      #target;
      constructor(target) {
        construct(RealWeakRef, [target], RealWeakRef);
        this.#target = target;
      }
      deref() {
        return this.#target;
      }
    }
    class FinalizationRegistry {
      #real;
      constructor(cleanup) {
        this.#real = construct(RealRegistry, [cleanup], RealRegistry);
      }
      register(target, held) {
        // For the checks alone: it is unregistered before anything can be collected.
        const token = {};
        apply(register, this.#real, [target, held, token]);
        apply(unregister, this.#real, [token]);
      }
      unregister() {
        return false;
      }
    }
    define(WeakRef.prototype, Symbol.toStringTag, "WeakRef", false);
    define(FinalizationRegistry.prototype, Symbol.toStringTag, "FinalizationRegistry", false);
    define(globalThis, "WeakRef", WeakRef, false);
    define(globalThis, "FinalizationRegistry", FinalizationRegistry, false);
  }

  // A promise that becomes text or JSON has been forgotten to wait for: what would come
  // of it, `{}` or `[object Promise]`, says nothing.
  const promisePrototype = Promise.prototype;
  const toPrimitive = Symbol.toPrimitive;
  const forgotten = () =>
    refuse("a promise was given where its value was meant: write `await` before it");
  function guide() {
    define(promisePrototype, "toJSON", forgotten, false);
    define(promisePrototype, toPrimitive, forgotten, false);
  }

  return {
    __proto__: null,
    makeGlobal,
    guide,
    determine,
    show: shared.show,
    mcpTool: shared.mcpTool,
    declared,
    jsonParse,
    jsonStringify,
    helperErrorPrototype,
    toolErrorPrototype,
    makeTools,
    // Called natively so that V8 notices a requested termination.
    noop() {},
  };
});
