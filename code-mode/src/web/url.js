// `URL` and `URLSearchParams`. Native code parses, by the WHATWG URL standard.
(function (hooks) {
  "use strict";
  const { parseUrl, setUrl, parseForm, formText } = hooks;
  const { apply, defineProperty, ownKeys, getOwnPropertyDescriptor } = Reflect;
  const call = (f) => (receiver, ...given) => apply(f, receiver, given);
  const push = call(Array.prototype.push);
  const splice = call(Array.prototype.splice);
  const sort = call(Array.prototype.sort);
  const wellFormed = call(String.prototype.toWellFormed);
  const substring = call(String.prototype.slice);
  const iterator = Symbol.iterator;
  const TypeErrorCtor = TypeError;
  const text = (value) => wellFormed(`${value}`);
  const tag = (constructor, name) =>
    defineProperty(constructor.prototype, Symbol.toStringTag, {
      __proto__: null,
      value: name,
      configurable: true,
    });
  const enumerable = (constructor, names) => {
    for (let i = 0; i < names.length; i++) {
      const property = getOwnPropertyDescriptor(constructor.prototype, names[i]);
      defineProperty(constructor.prototype, names[i], {
        __proto__: null,
        ...property,
        enumerable: true,
      });
    }
  };

  // The places of a URL's parts in what `parseUrl` gives; those from 2 on but for
  // ORIGIN can be set.
  const [HREF, ORIGIN, PROTOCOL, USERNAME, PASSWORD, HOST, HOSTNAME, PORT, PATHNAME, SEARCH, HASH] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

  let made;
  function make() {
    if (made !== undefined) return made;
    let follow;
    let refill;

    class URLSearchParams {
      // Pairs: [name, value].
      #pairs = [];
      // Tells its URL what it became.
      #changed = null;
      constructor(init = "") {
        if (typeof init === "object" && init !== null || typeof init === "function") {
          if (typeof init[iterator] === "function") {
            for (const pair of init) {
              const both = [...pair];
              if (both.length !== 2) {
                throw new TypeErrorCtor("URLSearchParams takes pairs of a name and a value");
              }
              push(this.#pairs, [text(both[0]), text(both[1])]);
            }
          } else {
            const keys = ownKeys(init);
            for (let i = 0; i < keys.length; i++) {
              const property = getOwnPropertyDescriptor(init, keys[i]);
              if (!property?.enumerable) continue;
              const name = text(keys[i]);
              const value = text(init[keys[i]]);
              let known;
              for (let at = 0; at < this.#pairs.length; at++) {
                if (this.#pairs[at][0] === name) known = this.#pairs[at];
              }
              if (known === undefined) push(this.#pairs, [name, value]);
              else known[1] = value;
            }
          }
          return;
        }
        init = text(init);
        this.#pairs = parseForm(init[0] === "?" ? substring(init, 1) : init);
      }
      static {
        follow = (params, changed) => {
          params.#changed = changed;
        };
        refill = (params, query) => {
          params.#pairs = parseForm(query);
        };
      }
      #change() {
        if (this.#changed !== null) this.#changed(this);
      }
      get size() {
        return this.#pairs.length;
      }
      append(name, value) {
        need(arguments.length, 2, "append");
        push(this.#pairs, [text(name), text(value)]);
        this.#change();
      }
      delete(name, value) {
        need(arguments.length, 1, "delete");
        name = text(name);
        const any = value === undefined;
        if (!any) value = text(value);
        const kept = [];
        for (let i = 0; i < this.#pairs.length; i++) {
          const pair = this.#pairs[i];
          if (pair[0] !== name || !(any || pair[1] === value)) push(kept, pair);
        }
        this.#pairs = kept;
        this.#change();
      }
      get(name) {
        need(arguments.length, 1, "get");
        name = text(name);
        for (let i = 0; i < this.#pairs.length; i++) {
          if (this.#pairs[i][0] === name) return this.#pairs[i][1];
        }
        return null;
      }
      getAll(name) {
        need(arguments.length, 1, "getAll");
        name = text(name);
        const all = [];
        for (let i = 0; i < this.#pairs.length; i++) {
          if (this.#pairs[i][0] === name) push(all, this.#pairs[i][1]);
        }
        return all;
      }
      has(name, value) {
        need(arguments.length, 1, "has");
        name = text(name);
        const any = value === undefined;
        if (!any) value = text(value);
        for (let i = 0; i < this.#pairs.length; i++) {
          const pair = this.#pairs[i];
          if (pair[0] === name && (any || pair[1] === value)) return true;
        }
        return false;
      }
      set(name, value) {
        need(arguments.length, 2, "set");
        name = text(name);
        value = text(value);
        let isSet = false;
        for (let i = 0; i < this.#pairs.length; i++) {
          if (this.#pairs[i][0] !== name) continue;
          if (isSet) splice(this.#pairs, i--, 1);
          else this.#pairs[i] = [name, value];
          isSet = true;
        }
        if (!isSet) push(this.#pairs, [name, value]);
        this.#change();
      }
      sort() {
        sort(this.#pairs, ([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
        this.#change();
      }
      forEach(callback, receiver) {
        if (typeof callback !== "function") {
          throw new TypeErrorCtor("forEach takes a function");
        }
        for (let i = 0; i < this.#pairs.length; i++) {
          const [name, value] = this.#pairs[i];
          apply(callback, receiver, [value, name, this]);
        }
      }
      *entries() {
        for (let i = 0; i < this.#pairs.length; i++) {
          yield [this.#pairs[i][0], this.#pairs[i][1]];
        }
      }
      *keys() {
        for (let i = 0; i < this.#pairs.length; i++) yield this.#pairs[i][0];
      }
      *values() {
        for (let i = 0; i < this.#pairs.length; i++) yield this.#pairs[i][1];
      }
      toString() {
        return formText(this.#pairs);
      }
    }
    const need = (given, needed, method) => {
      if (given < needed) {
        throw new TypeErrorCtor(`URLSearchParams.${method} needs ${needed} arguments`);
      }
    };
    defineProperty(URLSearchParams.prototype, iterator, {
      __proto__: null,
      value: URLSearchParams.prototype.entries,
      writable: true,
      configurable: true,
    });
    enumerable(URLSearchParams, [
      "append", "delete", "get", "getAll", "has", "set", "sort", "forEach",
      "entries", "keys", "values", "toString", "size",
    ]);
    tag(URLSearchParams, "URLSearchParams");

    class URL {
      #current;
      #params;
      // Parameters that were changed since the parts were made: many changes in a row
      // make one URL.
      #changed = null;
      get #parts() {
        if (this.#changed !== null) {
          const query = this.#changed.toString();
          this.#changed = null;
          this.#current = setUrl(this.#current[HREF], SEARCH, query) ?? this.#current;
        }
        return this.#current;
      }
      set #parts(parts) {
        this.#current = parts;
      }
      constructor(url, base) {
        if (arguments.length === 0) throw new TypeErrorCtor("URL needs a text");
        const parts = parse(url, base);
        if (parts === undefined) throw invalid(url, base);
        this.#parts = parts;
      }
      static canParse(url, base) {
        return parse(url, base) !== undefined;
      }
      static parse(url, base) {
        return parse(url, base) === undefined ? null : new URL(url, base);
      }
      #set(part, value) {
        const parts = setUrl(this.#parts[HREF], part, text(value));
        if (parts === undefined) return;
        this.#parts = parts;
        if (this.#params !== undefined) refill(this.#params, substring(parts[SEARCH], 1));
      }
      get href() {
        return this.#parts[HREF];
      }
      set href(value) {
        const parts = parse(value);
        if (parts === undefined) throw invalid(value);
        this.#parts = parts;
        if (this.#params !== undefined) refill(this.#params, substring(parts[SEARCH], 1));
      }
      get origin() {
        return this.#parts[ORIGIN];
      }
      get protocol() {
        return this.#parts[PROTOCOL];
      }
      set protocol(value) {
        this.#set(PROTOCOL, value);
      }
      get username() {
        return this.#parts[USERNAME];
      }
      set username(value) {
        this.#set(USERNAME, value);
      }
      get password() {
        return this.#parts[PASSWORD];
      }
      set password(value) {
        this.#set(PASSWORD, value);
      }
      get host() {
        return this.#parts[HOST];
      }
      set host(value) {
        this.#set(HOST, value);
      }
      get hostname() {
        return this.#parts[HOSTNAME];
      }
      set hostname(value) {
        this.#set(HOSTNAME, value);
      }
      get port() {
        return this.#parts[PORT];
      }
      set port(value) {
        this.#set(PORT, value);
      }
      get pathname() {
        return this.#parts[PATHNAME];
      }
      set pathname(value) {
        this.#set(PATHNAME, value);
      }
      get search() {
        return this.#parts[SEARCH];
      }
      set search(value) {
        this.#set(SEARCH, value);
      }
      get hash() {
        return this.#parts[HASH];
      }
      set hash(value) {
        this.#set(HASH, value);
      }
      get searchParams() {
        if (this.#params === undefined) {
          this.#params = new URLSearchParams(this.#parts[SEARCH]);
          follow(this.#params, (params) => {
            this.#changed = params;
          });
        }
        return this.#params;
      }
      toString() {
        return this.#parts[HREF];
      }
      toJSON() {
        return this.#parts[HREF];
      }
    }
    const parse = (url, base) =>
      base === undefined ? parseUrl(text(url)) : parseUrl(text(url), text(base));
    const invalid = (url, base) => {
      const error = new TypeErrorCtor("Invalid URL");
      const set = (key, value) =>
        defineProperty(error, key, {
          __proto__: null, value, writable: true, enumerable: true, configurable: true,
        });
      set("code", "ERR_INVALID_URL");
      set("input", `${url}`);
      if (base !== undefined) set("base", `${base}`);
      return error;
    };
    enumerable(URL, [
      "href", "origin", "protocol", "username", "password", "host", "hostname", "port",
      "pathname", "search", "searchParams", "hash", "toString", "toJSON",
    ]);
    tag(URL, "URL");
    made = { URL, URLSearchParams };
    return made;
  }

  return {
    __proto__: null,
    URL: () => make().URL,
    URLSearchParams: () => make().URLSearchParams,
  };
});
