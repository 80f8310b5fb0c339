#!lua flags=allow-oom
-- ARGV: batch, step, token, lease_ms
local batch, step, token = ARGV[1], ARGV[2], ARGV[3]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
if step ~= 'aggregate' and redis.call('HEXISTS', key, 'part:' .. string.sub(step, 7)) == 1 then
  return 'recorded'
end
if redis.call('HGET', key, 'lease:' .. step) ~= token then return 'lost' end
redis.call('ZADD', steps_key(step), now_ms() + tonumber(ARGV[4]), batch)
return 'kept'
