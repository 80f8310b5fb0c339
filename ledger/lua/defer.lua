#!lua flags=allow-oom
-- ARGV: batch, step, token, delay_ms
-- Gives a lease back; the step is due again after the delay.
local batch, step, token = ARGV[1], ARGV[2], ARGV[3]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
alive(key, step, token)
if redis.call('HGET', key, 'lease:' .. step) ~= token then return 'lost' end
redis.call('HDEL', key, 'lease:' .. step, 'named:' .. step)
redis.call('ZADD', steps_key(step), now_ms() + tonumber(ARGV[4]), batch)
return 'deferred'
