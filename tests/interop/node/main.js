// A session's life as a Node service lives it, with nothing but the protos:
//
//   node main.js TARGET PROTOS
//
// It prints one JSON object a step, and ends with status 1 at the first call that fails unexpectedly.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [target, protos] = process.argv.slice(2);
const definition = loader.loadSync("catraca/v1/session_service.proto", {
  includeDirs: [protos],
  keepCase: false,
  enums: String,
  longs: String,
});
const { SessionService } = grpc.loadPackageDefinition(definition).catraca.v1;
const client = new SessionService(target, grpc.credentials.createInsecure());

const show = (step) => console.log(JSON.stringify(step));

// Makes a unary call and shows what came of it.
function call(name, request) {
  const deadline = Date.now() + 10_000;
  return new Promise((resolve) => {
    client[name](request, { deadline }, (error, response) => {
      const result = error
        ? { code: grpc.status[error.code], hasDetails: error.metadata.get("grpc-status-details-bin").length === 1 }
        : { code: "OK", response };
      show({ rpc: name, ...result });
      resolve(error ? result : response);
    });
  });
}

// Opens a stream of events; returns a function that waits for the next response.
function watch() {
  const stream = client.WatchSessions();
  const received = [];
  const waiting = [];
  stream.on("error", () => {});
  stream.on("data", (response) => {
    show({ rpc: "WatchSessions", code: "OK", response });
    const next = waiting.shift();
    next ? next(response) : received.push(response);
  });
  const next = () => new Promise((resolve) => (received.length ? resolve(received.shift()) : waiting.push(resolve)));
  return { stream, next };
}

const { stream, next } = watch();
stream.write({ start: {} });
await next();
const login = await call("CreateSession", { userId: "ana", ttl: { seconds: 3600 }, attributes: { device: "phone" } });
const { token } = login;
const { sessionId } = login.session;
await call("ValidateSession", { token });
await call("ValidateSession", { token, userId: "bia", skipTouch: true });
await call("BatchValidateSessions", { requests: [{ token }, { token: "ctr_x" }] });
await call("GetSession", { sessionId });
await call("ListSessions", { userId: "ana" });
await call("UpdateSession", {
  session: { sessionId, attributes: { device: "laptop" } },
  updateMask: { paths: ["attributes"] },
});
const renewed = await call("RotateSession", { token });
await call("ValidateSession", { token: renewed.token });
await call("RevokeSession", { token: renewed.token });
await call("ValidateSession", { token: renewed.token });
await call("RevokeUserSessions", { userId: "ana" });
await call("GetSession", { sessionId });
await call("CreateSession", {});
stream.write({ ping: { nonce: 7 } });
while (!(await next()).pong);
stream.cancel();
client.close();
