// Submits a task, waits for its end and prints the result: node producer.js [host:port]
const Redis = require("ioredis");

const [host, port] = (process.argv[2] || "127.0.0.1:6379").split(":");
const queue = new Redis({ host, port: Number(port) });

async function main() {
  const payload = JSON.stringify({ text: "hello from JavaScript" });
  const id = await queue.call("TQ.SUBMIT", "shout", payload, "PRIORITY", "150", "RETRIES", "2");
  console.log("submitted", id);

  // Answers come as a flat list of names and values.
  const answer = await queue.call("TQ.WAIT", id, "30000");
  const task = {};
  for (let i = 0; i < answer.length; i += 2) task[answer[i]] = answer[i + 1];
  console.log(task.status, task.result ?? task.error);
  queue.disconnect();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
