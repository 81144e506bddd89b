// `TextEncoder`, `TextDecoder`, `atob` and `btoa`. Native code does the work.
(function (hooks, shared) {
  "use strict";
  const { encodeUtf8, encodingName, decodeText, base64Decode, base64Encode } = hooks;
  const { defineProperty, apply } = Reflect;
  const [TypeErrorCtor, RangeErrorCtor, Bytes] = [TypeError, RangeError, Uint8Array];
  const isView = ArrayBuffer.isView;
  const BufferCtor = ArrayBuffer;
  const setBytes = Uint8Array.prototype.set;
  const subarray = Uint8Array.prototype.subarray;
  const codePoint = String.prototype.codePointAt;
  const tag = (constructor, name) =>
    defineProperty(constructor.prototype, Symbol.toStringTag, {
      __proto__: null,
      value: name,
      configurable: true,
    });

  function makeEncoder() {
    class TextEncoder {
      get encoding() {
        return "utf-8";
      }
      encode(text = "") {
        return encodeUtf8(`${text}`);
      }
      encodeInto(text, bytes) {
        if (!(bytes instanceof Bytes)) {
          throw new TypeErrorCtor("encodeInto takes a Uint8Array");
        }
        text = `${text}`;
        let read = 0;
        let written = 0;
        const room = bytes.length;
        // By character, so that none is written in part.
        while (read < text.length) {
          const code = apply(codePoint, text, [read]);
          const units = code > 0xffff ? 2 : 1;
          const size = code < 0x80 ? 1 : code < 0x800 ? 2 : code > 0xffff ? 4 : 3;
          if (written + size > room) break;
          read += units;
          written += size;
        }
        const encoded = encodeUtf8(apply(String.prototype.slice, text, [0, read]));
        apply(setBytes, bytes, [encoded]);
        return { read, written };
      }
    }
    tag(TextEncoder, "TextEncoder");
    return TextEncoder;
  }

  function makeDecoder() {
    class TextDecoder {
      #encoding;
      #fatal;
      #ignoreBOM;
      // The number of the native decoder that keeps an unfinished character.
      #state = 0;
      constructor(label = "utf-8", options) {
        const { fatal = false, ignoreBOM = false } = options ?? {};
        const name = encodingName(`${label}`);
        if (name === undefined) {
          throw new RangeErrorCtor(`The encoding label provided ('${label}') is invalid.`);
        }
        this.#encoding = name;
        this.#fatal = Boolean(fatal);
        this.#ignoreBOM = Boolean(ignoreBOM);
      }
      get encoding() {
        return this.#encoding;
      }
      get fatal() {
        return this.#fatal;
      }
      get ignoreBOM() {
        return this.#ignoreBOM;
      }
      decode(input, options) {
        const stream = Boolean(options?.stream);
        let bytes;
        if (input === undefined) bytes = new Bytes(0);
        else if (isView(input)) {
          bytes = new Bytes(input.buffer, input.byteOffset, input.byteLength);
        } else if (typeof input === "object" && input !== null && input instanceof BufferCtor) {
          bytes = new Bytes(input);
        } else throw new TypeErrorCtor("decode takes an ArrayBuffer or a view of one");
        const decoded = decodeText(
          this.#encoding, bytes, this.#state, stream, this.#fatal, this.#ignoreBOM,
        );
        if (decoded === undefined) {
          this.#state = 0;
          throw new TypeErrorCtor("The encoded data was not valid for encoding " + this.#encoding);
        }
        this.#state = decoded[1];
        return decoded[0];
      }
    }
    tag(TextDecoder, "TextDecoder");
    return TextDecoder;
  }

  function atob(text) {
    if (arguments.length === 0) throw new TypeErrorCtor("atob needs a text");
    const decoded = base64Decode(`${text}`);
    if (decoded === undefined) {
      throw shared.refuse(
        "The string to be decoded is not correctly encoded.",
        "InvalidCharacterError",
      );
    }
    return decoded;
  }

  function btoa(text) {
    if (arguments.length === 0) throw new TypeErrorCtor("btoa needs a text");
    const encoded = base64Encode(`${text}`);
    if (encoded === undefined) {
      throw shared.refuse(
        "The string to be encoded contains characters outside of the Latin1 range.",
        "InvalidCharacterError",
      );
    }
    return encoded;
  }

  return {
    __proto__: null,
    TextEncoder: makeEncoder,
    TextDecoder: makeDecoder,
    atob: () => atob,
    btoa: () => btoa,
  };
});
