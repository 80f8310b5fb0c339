#!lua flags=allow-oom
-- ARGV: batch, model, token
-- The vectors of a part are gone: the model's step is due again, if that part still stands.
local batch, model = ARGV[1], ARGV[2]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
local part = redis.call('HGET', key, 'part:' .. model)
if not part or cjson.decode(part).token ~= ARGV[3] then return 'other' end
redis.call('HDEL', key, 'part:' .. model, 'lease:aggregate')
redis.call('HINCRBY', key, 'wait', 1)
redis.call('ZREM', steps_key('aggregate'), batch)
redis.call('ZADD', steps_key('embed.' .. model), now_ms(), batch)
return 'due'
