#!lua flags=allow-oom
-- ARGV: batch, token, then batches in ascending order
-- Gives the aggregate lease back until the last of these that is open has ended; `ended`: none is open.
local batch, token = ARGV[1], ARGV[2]
local key = batch_key(batch)
if redis.call('EXISTS', key) == 0 then return 'closed' end
if redis.call('HGET', key, 'lease:aggregate') ~= token then return 'lost' end
for i = #ARGV, 3, -1 do
  if wait_for(ARGV[i], batch) then
    redis.call('HDEL', key, 'lease:aggregate')
    return 'waits'
  end
end
return 'ended'
