#!lua flags=allow-oom
-- ARGV: batch, model, token, part, space, ring_ms, key of its vectors if they are here, too
-- The first part of a model wins, whoever holds the lease; the last part of a batch makes it ready.
local batch, model, token = ARGV[1], ARGV[2], ARGV[3]
local key, step = batch_key(batch), 'embed.' .. model
if ARGV[7] ~= '' and redis.call('EXISTS', ARGV[7]) == 0 then return { 'unwritten' } end
if redis.call('EXISTS', key) == 0 then return { 'closed' } end
alive(key, step, token)
local space = redis.call('HGET', key, 'space:' .. model)
if space ~= ARGV[5] then return { 'space', space or '' } end
local part = redis.call('HGET', key, 'part:' .. model)
if part then
  if cjson.decode(part).token ~= token then return { 'other' } end
else
  redis.call('HSET', key, 'part:' .. model, ARGV[4])
  redis.call('HDEL', key, 'lease:' .. step, 'named:' .. step)
  redis.call('ZREM', steps_key(step), batch)
  if redis.call('HINCRBY', key, 'wait', -1) == 0 then
    redis.call('ZADD', steps_key('aggregate'), now_ms() + tonumber(ARGV[6]), batch)
  end
end
if tonumber(redis.call('HGET', key, 'wait')) == 0 then return { 'ready' } end
return { 'recorded' }
