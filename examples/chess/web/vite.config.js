/** @type {import("vite").UserConfig} */
export default {
  // lockstep-client is a link to a folder of this repository: its hooks are to use the same React as the page.
  resolve: { dedupe: ["react"] },
  build: { target: "es2022" },
  // `npm run dev`, beside `make chess`: the page anew with each change of its sources.
  server: { proxy: { "/api": "http://127.0.0.1:8000" } },
};
