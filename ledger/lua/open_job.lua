-- ARGV: job, signature, collection, plan fingerprint, plan, sources, host, max_dead, part
-- Adopts the unfinished job of the same signature, else opens one if the collection is free for the plan.
local job, signature, collection, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
-- The start orders writes to the collection, so it only moves forward, whatever the clock does.
local function next_start()
  local last = tonumber(redis.call('HGET', P .. 'started', collection) or '0')
  local started = math.max(now_ms(), last + 1)
  redis.call('HSET', P .. 'started', collection, started)
  return started
end
local standing = redis.call('GET', P .. 'adopt:' .. signature)
if standing and redis.call('EXISTS', job_key(standing)) == 1 then
  local key = job_key(standing)
  if standing == job then return { 'opened', standing } end
  redis.call('HSET', key, 'max_dead', ARGV[8])
  if redis.call('HGET', key, 'state') == 'paused' then
    redis.call('HSET', key, 'state', 'open', 'dead', 0)
    redis.call('DEL', P .. 'dead:' .. standing)
  end
  -- Nothing of it is under way: what it writes from now on is newer than what others wrote meanwhile.
  if redis.call('SCARD', open_key(standing)) == 0 then redis.call('HSET', key, 'started', next_start()) end
  return { 'adopted', standing }
end
local active = redis.call('HGETALL', P .. 'active:' .. collection)
for i = 1, #active, 2 do
  if active[i + 1] ~= fingerprint then return { 'busy', active[i] } end
end
local now, started = now_ms(), next_start()
redis.call('HSET', job_key(job), 'signature', signature, 'collection', collection, 'state', 'open',
  'fingerprint', fingerprint, 'plan', ARGV[5], 'sources', ARGV[6], 'host', ARGV[7],
  'started', started, 'created', now, 'next', 0, 'last', '',
  'staged', 0, 'done', 0, 'dead', 0, 'lost', 0, 'batches', 0, 'tokens_seen', 0, 'tokens_kept', 0,
  'truncated', 0, 'max_dead', ARGV[8], 'part', ARGV[9])
redis.call('ZADD', P .. 'jobs', now, job)
redis.call('HSET', P .. 'active:' .. collection, job, fingerprint)
redis.call('SET', P .. 'adopt:' .. signature, job)
return { 'opened', job }
