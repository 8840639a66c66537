/** Where a server is. */

/**
 * The server's address, below which `ws` and `v1/` are, from what an application says of it.
 *
 * @param {string | URL} url of http:, https:, ws: or wss:, or relative to the document; its path is taken for a folder's
 * @returns {URL} of http: or https:, with a path that ends in a slash, without query and fragment
 * @throws {TypeError} where it cannot be one
 */
export function serverAddress(url) {
  const base = globalThis.document?.baseURI ?? globalThis.location?.href;
  const address = new URL(url, base);
  address.protocol = address.protocol.replace(/^ws/, "http");
  if (!/^https?:$/.test(address.protocol)) throw new TypeError(`${url} is not of http:, https:, ws: or wss:`);
  address.pathname = address.pathname.replace(/\/?$/, "/");
  address.search = address.hash = "";
  return address;
}
