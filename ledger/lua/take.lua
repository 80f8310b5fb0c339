#!lua flags=allow-oom
-- ARGV: batch, step, token, lease_ms, what the keys of its texts begin with if they are here
-- Takes the lease of a step, unless there is nothing to do or somebody is at it. With a fifth argument, the text
-- comes along, or nothing if it is gone.
local batch, step, token, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key, steps = batch_key(batch), steps_key(step)
if redis.call('EXISTS', key) == 0 then
  redis.call('ZREM', steps, batch)
  return { 'closed' }
end
if step == 'aggregate' then
  if tonumber(redis.call('HGET', key, 'wait')) > 0 then return { 'early' } end
elseif redis.call('HEXISTS', key, 'part:' .. string.sub(step, 7)) == 1 then
  return { 'recorded' }
end
local now = now_ms()
local holder = redis.call('HGET', key, 'lease:' .. step)
if holder ~= token then
  local due = tonumber(redis.call('ZSCORE', steps, batch) or '0')
  if holder and due > now then return { 'live' } end
  vanish(key, step)
  redis.call('HSET', key, 'lease:' .. step, token)
  redis.call('HINCRBY', key, 'tries:' .. step, 1)
end
alive(key, step, token)
redis.call('ZADD', steps, now + lease, batch)
local job = redis.call('HGET', key, 'job')
local about = redis.call('HMGET', job_key(job), 'collection', 'plan', 'started')
local answer = { 'taken', redis.call('HGETALL', key), about }
if ARGV[5] ~= '' then answer[4] = redis.call('GET', ARGV[5] .. redis.call('HGET', key, 'text')) end
return answer
