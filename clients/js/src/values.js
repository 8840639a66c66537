/** What several modules make of values. */

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** crypto.randomUUID exists on https and localhost only. */
export const randomKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");
