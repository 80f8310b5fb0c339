#!lua flags=allow-oom
-- ARGV: batch, token, models, spaces, ring_ms
-- The originals of a batch of copies will not come: from now on it is to be embedded like any other.
local batch, models, spaces = ARGV[1], cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
if redis.call('HGET', key, 'lease:aggregate') ~= ARGV[2] then return 'lost' end
redis.call('HSET', key, 'models', ARGV[3], 'wait', #models)
redis.call('HDEL', key, 'lease:aggregate')
redis.call('ZREM', steps_key('aggregate'), batch)
for i, model in ipairs(models) do
  redis.call('HSET', key, 'space:' .. model, spaces[i])
  redis.call('ZADD', steps_key('embed.' .. model), now_ms() + tonumber(ARGV[5]), batch)
  redis.call('SADD', P .. 'queues', 'embed.' .. model)
end
return 'due'
