#!lua flags=allow-oom
-- ARGV: batch, step, token, lease_ms, and where that changes: the chunk that goes through alone (empty: none)
local batch, step, token = ARGV[1], ARGV[2], ARGV[3]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
if step ~= 'aggregate' and redis.call('HEXISTS', key, 'part:' .. string.sub(step, 7)) == 1 then
  return 'recorded'
end
-- Its batch has parts to come again: what it held has gone with the one that was lost.
if step == 'aggregate' and tonumber(redis.call('HGET', key, 'wait')) > 0 then return 'lost' end
local chunk = alive(key, step, token)
local holder = redis.call('HGET', key, 'lease:' .. step)
if holder and holder ~= token then return 'lost' end
-- It ran out and nobody took it: it is ours again, and so is what stood there.
if not holder then
  redis.call('HSET', key, 'lease:' .. step, token)
  if chunk then redis.call('HSET', key, 'named:' .. step, chunk) end
end
if ARGV[5] == '' then
  redis.call('HDEL', key, 'named:' .. step)
elseif ARGV[5] then
  redis.call('HSET', key, 'named:' .. step, ARGV[5])
end
redis.call('ZADD', steps_key(step), now_ms() + tonumber(ARGV[4]), batch)
return 'kept'
