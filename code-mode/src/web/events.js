// `DOMException`, `Event`, `EventTarget`, `AbortController` and `AbortSignal`, as the
// DOM standard has them where a program without a document can tell.
(function (hooks, shared) {
  "use strict";
  const { fail, setTimer } = hooks;
  const { apply, defineProperty } = Reflect;
  const call = (f) => (receiver, ...given) => apply(f, receiver, given);
  const push = call(Array.prototype.push);
  const splice = call(Array.prototype.splice);
  const slice = call(Array.prototype.slice);
  const iterator = Symbol.iterator;
  const [ErrorCtor, TypeErrorCtor] = [Error, TypeError];
  const { captureStackTrace } = Error;
  const nowMs = hooks.nowMs;

  const once = (make) => {
    let made;
    return () => (made ??= make());
  };
  const tag = (constructor, name) =>
    defineProperty(constructor.prototype, Symbol.toStringTag, {
      __proto__: null,
      value: name,
      configurable: true,
    });

  const CODES = {
    __proto__: null,
    IndexSizeError: 1, NotFoundError: 8, NotSupportedError: 9, InvalidStateError: 11,
    SyntaxError: 12, InvalidAccessError: 15, TypeMismatchError: 17, SecurityError: 18,
    NetworkError: 19, AbortError: 20, URLMismatchError: 21, QuotaExceededError: 22,
    TimeoutError: 23, DataCloneError: 25, InvalidCharacterError: 5,
  };

  const exception = once(() => {
    class DOMException extends ErrorCtor {
      #name;
      constructor(message = "", options = "Error") {
        const named = typeof options === "object" && options !== null;
        super(`${message}`, named && "cause" in options ? { cause: options.cause } : undefined);
        this.#name = `${named ? (options.name ?? "Error") : options}`;
        captureStackTrace(this, DOMException);
      }
      get name() {
        return this.#name;
      }
      get code() {
        return CODES[this.#name] ?? 0;
      }
    }
    tag(DOMException, "DOMException");
    return DOMException;
  });
  shared.refuse = (message, name) => {
    const DOMException = exception();
    return new DOMException(message, name);
  };

  const events = once(() => {
    class Event {
      #type;
      #options;
      #timeStamp = nowMs();
      // What dispatching knows of it.
      target = null;
      currentTarget = null;
      defaultPrevented = false;
      #stopped = false;
      constructor(type, options = {}) {
        if (arguments.length === 0) throw new TypeErrorCtor("Event needs a type");
        this.#type = `${type}`;
        this.#options = options ?? {};
      }
      get type() {
        return this.#type;
      }
      get bubbles() {
        return Boolean(this.#options.bubbles);
      }
      get cancelable() {
        return Boolean(this.#options.cancelable);
      }
      get composed() {
        return Boolean(this.#options.composed);
      }
      get timeStamp() {
        return this.#timeStamp;
      }
      get eventPhase() {
        return this.currentTarget === null ? 0 : 2;
      }
      preventDefault() {
        if (this.cancelable) this.defaultPrevented = true;
      }
      stopPropagation() {}
      stopImmediatePropagation() {
        this.#stopped = true;
      }
      static isStopped(event) {
        return event.#stopped;
      }
    }
    const { isStopped } = Event;
    delete Event.isStopped;
    tag(Event, "Event");

    class EventTarget {
      #listeners = [];
      addEventListener(type, callback, options) {
        if (callback === null || callback === undefined) return;
        const { once = false, signal } =
          typeof options === "object" && options !== null ? options : {};
        if (signal?.aborted) return;
        type = `${type}`;
        const known = this.#listeners;
        for (let i = 0; i < known.length; i++) {
          if (known[i].type === type && known[i].callback === callback) return;
        }
        push(known, { type, callback, once });
        if (signal) {
          signal.addEventListener("abort", () => this.removeEventListener(type, callback));
        }
      }
      removeEventListener(type, callback) {
        const known = this.#listeners;
        for (let i = 0; i < known.length; i++) {
          if (known[i].type === `${type}` && known[i].callback === callback) {
            splice(known, i, 1);
            return;
          }
        }
      }
      dispatchEvent(event) {
        if (!(event instanceof Event)) throw new TypeErrorCtor("dispatchEvent takes an Event");
        event.target = event.currentTarget = this;
        // Of the targets here only a signal has such a property.
        const own = event.type === "abort" ? this.onabort : undefined;
        if (typeof own === "function") report(own, this, event);
        const listeners = slice(this.#listeners);
        for (let i = 0; i < listeners.length && !isStopped(event); i++) {
          const { type, callback, once } = listeners[i];
          if (type !== event.type) continue;
          if (once) this.removeEventListener(type, callback);
          if (typeof callback === "function") report(callback, this, event);
          else report(callback.handleEvent, callback, event);
        }
        event.currentTarget = null;
        return !event.defaultPrevented;
      }
    }
    tag(EventTarget, "EventTarget");
    // What a listener throws is not the dispatcher's: it fails the cell, as a throw
    // in a timer does.
    const report = (listener, receiver, event) => {
      try {
        apply(listener, receiver, [event]);
      } catch (error) {
        fail(error);
      }
    };
    class CustomEvent extends Event {
      #detail;
      constructor(type, options) {
        super(type, options);
        this.#detail = options?.detail ?? null;
      }
      get detail() {
        return this.#detail;
      }
    }
    tag(CustomEvent, "CustomEvent");
    return { Event, CustomEvent, EventTarget };
  });

  const aborting = once(() => {
    const { Event, EventTarget } = events();
    const token = {};
    let abort;
    class AbortSignal extends EventTarget {
      #aborted = false;
      #reason;
      #then = [];
      onabort = null;
      constructor(made) {
        if (made !== token) throw new TypeErrorCtor("Illegal constructor");
        super();
      }
      get aborted() {
        return this.#aborted;
      }
      get reason() {
        return this.#reason;
      }
      throwIfAborted() {
        if (this.#aborted) throw this.#reason;
      }
      static {
        abort = (signal, reason) => {
          if (signal.#aborted) return;
          signal.#aborted = true;
          signal.#reason =
            reason === undefined
              ? shared.refuse("This operation was aborted", "AbortError")
              : reason;
          signal.dispatchEvent(new Event("abort"));
          const dependent = signal.#then;
          signal.#then = [];
          for (let i = 0; i < dependent.length; i++) abort(dependent[i], signal.#reason);
        };
      }
      static abort(reason) {
        const signal = new AbortSignal(token);
        abort(signal, reason);
        return signal;
      }
      static timeout(ms) {
        ms = +ms;
        if (!(ms >= 0)) throw new TypeErrorCtor("AbortSignal.timeout takes milliseconds from 0");
        const signal = new AbortSignal(token);
        setTimer(() => {
          abort(
            signal,
            shared.refuse("The operation was aborted due to timeout", "TimeoutError"),
          );
        }, ms);
        return signal;
      }
      static any(signals) {
        const any = new AbortSignal(token);
        for (const signal of { [iterator]: () => signals[iterator]() }) {
          if (signal.#aborted) {
            abort(any, signal.#reason);
            break;
          }
          push(signal.#then, any);
        }
        return any;
      }
    }
    tag(AbortSignal, "AbortSignal");
    class AbortController {
      #signal = new AbortSignal(token);
      get signal() {
        return this.#signal;
      }
      abort(reason) {
        abort(this.#signal, reason);
      }
    }
    tag(AbortController, "AbortController");
    return { AbortSignal, AbortController };
  });

  return {
    __proto__: null,
    DOMException: exception,
    Event: () => events().Event,
    CustomEvent: () => events().CustomEvent,
    EventTarget: () => events().EventTarget,
    AbortSignal: () => aborting().AbortSignal,
    AbortController: () => aborting().AbortController,
  };
});
