#!lua flags=allow-oom
-- ARGV: step, waiting, most, ring_ms
-- The oldest overdue batches of a step, no more than overdue minus the rings that already wait.
local step, most = ARGV[1], tonumber(ARGV[3])
local steps, now = steps_key(step), now_ms()
local overdue = redis.call('ZCOUNT', steps, '-inf', now) - tonumber(ARGV[2])
local count = math.min(overdue, most)
if count <= 0 then return {} end
local batches = redis.call('ZRANGEBYSCORE', steps, '-inf', now, 'LIMIT', 0, count)
local rung = {}
for _, batch in ipairs(batches) do
  local key = batch_key(batch)
  if redis.call('EXISTS', key) == 1 then
    -- The lease has run out; whoever held it finds that out at its next renewal.
    vanish(key, step)
    redis.call('ZADD', steps, now + tonumber(ARGV[4]), batch)
    rung[#rung + 1] = batch
  else
    redis.call('ZREM', steps, batch)
  end
end
return rung
